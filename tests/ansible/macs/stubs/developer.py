"""The Command Line Tools: softwareupdate that installs them, xcode-select that points at them."""

from __future__ import annotations

from .mac import Mac, refuse, say

TOOLS = "/Library/Developer/CommandLineTools"
FLAG = "/tmp/.com.apple.dt.CommandLineTools.installondemand.in-progress"
LINK = "/var/db/xcode_select_link"
GIT = """\
#!/bin/sh
[ "$1" = --version ] && echo "git version 2.50.1 (Apple Git-155)" && exit
exec /usr/bin/git "$@"
"""
FINDING = "Software Update Tool\n\nFinding available software"


def softwareupdate(mac: Mac, args: list[str]) -> None:
    """``-l`` lists, ``-i LABEL`` installs. The tools are offered only while the flag file is there."""
    flag = args[0] if args else ""
    offered = [u for u in mac.state["updates"] if not u["is_tools"] or (mac.path(FLAG).exists() and not has_tools(mac))]
    if flag in ("-l", "--list"):
        say(FINDING)
        if not offered:
            refuse(0, "No new software available.")
        say("Software Update found the following new or updated software:")
        for one in offered:
            say(f"* Label: {one['label']}")
            say(f"\tTitle: {one['title']}, Version: {one['version']}, Size: {one['size']}KiB, Recommended: YES, ")
        return
    if flag not in ("-i", "--install") or len(args) < 2:
        refuse(1, "usage: softwareupdate <cmd> [<args> ...]")
    if not mac.is_root:
        refuse(1, "softwareupdate: must be run as root")
    _install(mac, [word for word in args[1:] if not word.startswith("-")], offered)


def _install(mac: Mac, labels: list[str], offered: list[dict]) -> None:
    say(f"{FINDING}\n")
    for label in labels:
        update = next((one for one in offered if one["label"] == label), None)
        if update is None:
            refuse(0, f"{label}: No such update\nNo updates are available.")
        title = update["title"]
        say(f"Downloading {title}\nDownloaded {title}\nInstalling {title}\nDone with {title}")
        if update["is_tools"]:
            install_tools(mac)
        mac.note()
    say("Done.")


def has_tools(mac: Mac) -> bool:
    """Tell whether the Command Line Tools are installed."""
    return mac.path(f"{TOOLS}/usr/bin/git").exists()


def install_tools(mac: Mac) -> None:
    """Put the tools in place: a git that says whose it is, and a Python."""
    folder = mac.path(f"{TOOLS}/usr/bin")
    folder.mkdir(parents=True, exist_ok=True)
    git = folder / "git"
    git.write_text(GIT)
    git.chmod(0o755)
    (folder / "python3").symlink_to("/usr/bin/python3")


def xcode_select(mac: Mac, args: list[str]) -> None:
    """Show or set the active developer folder."""
    link = mac.path(LINK)
    if args in (["-p"], ["--print-path"]):
        if not link.is_symlink() and not has_tools(mac):
            refuse(
                2,
                "xcode-select: error: unable to get active developer directory, use `sudo xcode-select --switch"
                " path/to/Xcode.app` to set one (or see `man xcode-select`)",
            )
        say(str(link.readlink()) if link.is_symlink() else TOOLS)
    elif args[:1] in (["-s"], ["--switch"], ["-switch"]) and len(args) == 2:
        if not mac.is_root:
            refuse(1, "xcode-select: error: --switch must be run as root (e.g. `sudo xcode-select --switch PATH`)")
        if not mac.path(args[1]).is_dir():
            refuse(1, f"xcode-select: error: invalid developer directory '{args[1]}'")
        link.unlink(missing_ok=True)
        link.symlink_to(args[1])
        mac.note()
    elif args == ["--install"]:
        refuse(0, "xcode-select: note: install requested for command line developer tools")
    else:
        refuse(1, "usage: xcode-select [-p | -s PATH | --install]")
