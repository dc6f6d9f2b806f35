#!/bin/sh
printf 'HYDRA build details:\n    Version:                                 %s\n' @VERSION@
