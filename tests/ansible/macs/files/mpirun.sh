#!/bin/sh
# Homebrew's mpirun as far as this host goes: the wheel's of the provisioned environment, else one that runs a program here.
for root in /opt/flotilla /Users/Shared/flotilla; do
  [ -x "$root/env/bin/mpirun" ] && exec "$root/env/bin/mpirun" "$@"
done
if [ "$*" = --version ] || [ "$*" = -V ]; then
  printf 'mpirun (Open MPI) %s\n\nReport bugs to https://www.open-mpi.org/community/help/\n' @VERSION@
  exit
fi
for last; do :; done
exec "${last:?no program}"
