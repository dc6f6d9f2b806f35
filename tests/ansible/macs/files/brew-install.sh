#!/bin/bash
# Stands for Homebrew's installer: refuses root, needs sudo without a question, brings the Command Line Tools, makes /opt/homebrew.
set -u
abort() {
  printf '%s\n' "$@" >&2
  exit 1
}
[ "$(id -u)" != 0 ] || abort "Don't run this as root!"

as_root() {
  if [ -n "${SUDO_ASKPASS-}" ]; then
    sudo -A "$@"
  elif [ -n "${NONINTERACTIVE-}" ]; then
    sudo -n "$@"
  else
    sudo "$@"
  fi
}
[ -z "${NONINTERACTIVE-}" ] || echo 'Running in non-interactive mode because `$NONINTERACTIVE` is set.'
echo '==> Checking for `sudo` access (which may request your password)...'
as_root -v 2>/dev/null && as_root true 2>/dev/null ||
  abort "Need sudo access on macOS (e.g. the user $(id -un) needs to be an Administrator)!"
if [ -z "${NONINTERACTIVE-}" ]; then
  echo "Press RETURN/ENTER to continue or any other key to abort:"
  read -r answer || exit 1
  [ -z "$answer" ] || exit 1
fi

if [ ! -e /Library/Developer/CommandLineTools/usr/bin/git ]; then
  echo "==> Searching online for the Command Line Tools"
  flag=/tmp/.com.apple.dt.CommandLineTools.installondemand.in-progress
  as_root touch "$flag"
  label=$(/usr/sbin/softwareupdate -l | sed -n 's/^\* Label: \(Command Line Tools.*\)/\1/p' | sort -V | tail -n 1)
  [ -z "$label" ] || as_root /usr/sbin/softwareupdate -i "$label"
  as_root rm -f "$flag"
  [ -z "$label" ] || as_root /usr/bin/xcode-select --switch /Library/Developer/CommandLineTools
fi
[ -e /Library/Developer/CommandLineTools/usr/bin/git ] || abort "Failed to install the Command Line Tools."

echo "==> The following new directories will be created:" /opt/homebrew
for folder in "" bin etc include lib sbin share var opt Cellar Caskroom Frameworks var/homebrew/linked; do
  as_root /bin/mkdir -p "/opt/homebrew/$folder"
done
as_root chown -R "$(id -un)" /opt/homebrew
echo "==> Downloading and installing Homebrew..."
install -m 755 /usr/local/share/flotilla-mac/brew /opt/homebrew/bin/brew
echo "==> Installation successful!"
