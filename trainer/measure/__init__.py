"""What one machine does, what links carry, what several machines would bring. Control side: no MLX.

What ranks do for it is in `trainer.engine.measure` (inference, training) and `trainer.comm.links` (all-reduces, sockets).
"""
