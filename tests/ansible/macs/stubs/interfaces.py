"""ifconfig, netstat and route: the interfaces as they are at the moment."""

from __future__ import annotations

import ipaddress

from .mac import LINK, Mac, State, refuse, say
from .network import WIFI, carry_over, is_active, live_inet, new_bridge

FLAGS = {"UP": 0x1, "BROADCAST": 0x2, "SMART": 0x20, "RUNNING": 0x40, "PROMISC": 0x100, "SIMPLEX": 0x800, "MULTICAST": 0x8000}


def ifconfig(mac: Mac, args: list[str]) -> None:
    """Show interfaces, or change one until the next boot."""
    state = mac.state
    if args == ["-l"]:
        say(" ".join(state["interfaces"]))
    elif not args or args in (["-a"], ["-av"], ["-v"]):
        for device in state["interfaces"]:
            say(_show(mac, state, device))
    elif len(args) == 1:
        _find(state, args[0])
        say(_show(mac, state, args[0]))
    else:
        if not mac.is_root:
            refuse(1, f"ifconfig: {args[1]}: permission denied")
        with mac.change() as changed:
            _change(changed, args[0], args[1:])
            carry_over(mac, changed)


def _find(state: State, device: str) -> dict:
    interface = state["interfaces"].get(device)
    if interface is None:
        refuse(1, f"ifconfig: interface {device} does not exist")
    return interface


def _change(state: State, device: str, words: list[str]) -> None:
    if words == ["create"]:
        if device in state["interfaces"]:
            refuse(1, "ifconfig: SIOCIFCREATE2: File exists")
        state["interfaces"][device] = new_bridge(state)
        return
    interface, words = _find(state, device), list(words)
    while words:
        word = words.pop(0)
        if word in ("up", "down"):
            interface["up"] = word == "up"
        elif word == "destroy":
            del state["interfaces"][device]
        elif word in ("addm", "deletem"):
            _change_member(state, interface, word, words.pop(0))
        elif word == "mtu":
            interface["mtu"] = int(words.pop(0))
        else:
            _change_address(interface, word, words)


def _change_member(state: State, interface: dict, word: str, member: str) -> None:
    if word == "deletem":
        if member not in interface.get("members", ()):
            refuse(1, f"ifconfig: BRDGDEL {member}: No such file or directory")
        interface["members"].remove(member)
        return
    if member not in state["interfaces"]:
        refuse(1, f"ifconfig: BRDGADD {member}: No such file or directory")
    if any(member in other.get("members", ()) for other in state["interfaces"].values()):
        refuse(1, f"ifconfig: BRDGADD {member}: Device busy")
    interface["members"].append(member)


def _change_address(interface: dict, word: str, words: list[str]) -> None:
    """``[inet] ADDRESS[/BITS] [netmask MASK] [alias|-alias|delete]``, which empties ``words``."""
    rest = [one for one in (word, *words) if one not in ("inet", "netmask", "alias", "-alias", "delete", "remove")]
    goes = any(one in ("-alias", "delete", "remove") for one in (word, *words))
    adds = "alias" in words
    words.clear()
    try:
        spelled = "/".join([rest[0], *(str(_mask(mask)) for mask in rest[1:2])]) if rest else ""
        network = ipaddress.IPv4Interface(spelled) if spelled else None
    except ValueError:
        refuse(1, f"ifconfig: {rest[0]}: bad value")
    kept = [one for one in interface["inet"] if network and (adds or goes) and one["address"] != str(network.ip)]
    added = [{"address": str(network.ip), "mask": str(network.netmask)}] if network and not goes else []
    interface["inet"] = kept + added


def _mask(text: str) -> str:
    return str(ipaddress.IPv4Address(int(text, 16))) if text.startswith("0x") else text


def _show(mac: Mac, state: State, device: str) -> str:
    interface = state["interfaces"][device]
    bus = next((bus for bus in state["thunderbolt"] if bus["device"] == device), None)
    names = ["UP"] * interface["up"] + ["BROADCAST", "SMART"] + ["RUNNING"] * interface["up"]
    if any(device in other.get("members", ()) for other in state["interfaces"].values()):
        names.append("PROMISC")
    names += ["SIMPLEX", "MULTICAST"]
    lines = [f"{device}: flags={sum(FLAGS[name] for name in names):x}<{','.join(names)}> mtu {interface['mtu']}"]
    if device == "lo0":
        return f"lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu {interface['mtu']}\n\tinet 127.0.0.1 netmask 0xff000000"
    options = "460<TSO4,TSO6,CHANNEL_IO>" if bus else "6460<TSO4,TSO6,CHANNEL_IO,PARTIAL_CSUM,ZEROINVERT_CSUM>"
    lines.append(f"\toptions={'63<RXCSUM,TXCSUM,TSO4,TSO6>' if 'members' in interface else options}")
    lines.append(f"\tether {interface['ether']}")
    lines += [_show_inet(inet) for inet in live_inet(mac, state, device)]
    if "members" in interface:
        lines += _show_members(state, interface)
    active = is_active(mac, state, device)
    media = "autoselect" if active else "<unknown type>"
    return "\n".join([*lines, f"\tmedia: {media}", f"\tstatus: {'active' if active else 'inactive'}"])


def _show_inet(inet: dict) -> str:
    network = ipaddress.IPv4Interface(f"{inet['address']}/{inet['mask']}").network
    return f"\tinet {inet['address']} netmask 0x{int(network.netmask):08x} broadcast {network.broadcast_address}"


def _show_members(state: State, interface: dict) -> list[str]:
    lines = [
        "\tConfiguration:",
        "\t\tid 0:0:0:0:0:0 priority 0 hellotime 0 fwddelay 0",
        "\t\tmaxage 0 holdcnt 0 proto stp maxaddr 100 timeout 1200",
    ]
    for member in interface["members"]:
        port = state["interfaces"].get(member, {}).get("index", 0)
        lines.append(f"\tmember: {member} flags=3<LEARNING,DISCOVER>")
        lines.append(f"\t        ifmaxaddr 0 port {port} priority 0 path cost 0")
    return lines


def netstat(mac: Mac, args: list[str]) -> None:
    """Count bytes per interface, for ``-i -b -n``: those of the laboratory's links."""
    if "i" not in "".join(args):
        refuse(1, "netstat: only -ibn is modelled")
    state = mac.state
    say("Name       Mtu   Network       Address            Ipkts Ierrs     Ibytes    Opkts Oerrs     Obytes  Coll")
    wanted = args[args.index("-I") + 1] if "-I" in args[:-1] else ""
    for device, interface in state["interfaces"].items():
        if wanted not in ("", device):
            continue
        counts = _count(mac, state, device)
        tail = " {:>8} {:>5} {:>10} {:>8} {:>5} {:>10} {:>5}".format(*counts)
        mark = "" if interface["up"] else "*"
        link = f"<Link#{interface['index']}>"
        say(f"{device + mark:<10} {interface['mtu']:<5} {link:<11}   {interface.get('ether', ''):<17}{tail}")
        for inet in live_inet(mac, state, device):
            network = ipaddress.IPv4Interface(f"{inet['address']}/{inet['mask']}").network
            row = [*counts[:1], "-", counts[2], counts[3], "-", counts[5], "-"]
            tail = " {:>8} {:>5} {:>10} {:>8} {:>5} {:>10} {:>5}".format(*row)
            say(f"{device + mark:<10} {interface['mtu']:<5} {_shorten(network):<13} {inet['address']:<17}{tail}")


def _shorten(network: ipaddress.IPv4Network) -> str:
    octets = str(network.network_address).split(".")[: -(-network.prefixlen // 8)]
    return ".".join(octets) + (f"/{network.prefixlen}" if network.prefixlen % 8 else "")


def _count(mac: Mac, state: State, device: str) -> list[int]:
    """Packets in, errors, bytes in, packets out, errors, bytes out, collisions. The link's bytes are those of the bridge
    and of its cabled ports; where the bridge is apart, of the first cabled port with an address.
    """
    real = {"lo0": "lo", state["managed_by"]: WIFI}.get(device, LINK if _carries(state, device) else "")
    folder = mac.interface(real) if real else None
    if folder is None:
        return [0] * 7
    names = ("rx_packets", "rx_errors", "rx_bytes", "tx_packets", "tx_errors", "tx_bytes", "collisions")
    return [int((folder / "statistics" / name).read_text()) for name in names]


def _carries(state: State, device: str) -> bool:
    interfaces = state["interfaces"]
    bridge = next((one for one in interfaces.values() if one.get("members") and one["up"]), None)
    if bridge is not None:
        return bridge is interfaces[device] or device in bridge["members"][:1]
    addressed = [bus["device"] for bus in state["thunderbolt"] if bus["peer"] and interfaces[bus["device"]]["inet"]]
    return device in addressed[:1]


def route(mac: Mac, args: list[str]) -> None:
    """``route -n get ADDRESS``: by which interface packets would leave."""
    words = [word for word in args if not word.startswith("-")]
    if len(words) != 2 or words[0] != "get":
        refuse(64, "usage: route [-dnqtv] command [[modifiers] args]")
    state, target = mac.state, words[1]
    nets = [
        (ipaddress.IPv4Interface(f"{inet['address']}/{inet['mask']}"), device)
        for device, interface in state["interfaces"].items()
        for inet in ([{"address": "127.0.0.1", "mask": "255.0.0.0"}] if device == "lo0" else live_inet(mac, state, device))
        if interface["up"]
    ]
    try:
        found = [(net, device) for net, device in nets if target != "default" and ipaddress.IPv4Address(target) in net.network]
    except ValueError:
        refuse(68, f"route: bad address: {target}")
    net, device = max(found, key=lambda one: one[0].network.prefixlen, default=(None, state["managed_by"]))
    if net is not None and str(net.ip) == target:
        device = "lo0"
    say(f"   route to: {target}\ndestination: {net.network.network_address if net else 'default'}")
    say(f"       mask: {net.netmask if net else 'default'}\n  interface: {device}\n      flags: <UP,DONE,CLONING>")
    say(" recvpipe  sendpipe  ssthresh  rtt,msec    rttvar  hopcount      mtu     expire")
    say(f"       0         0         0         0         0         0      {state['interfaces'][device]['mtu']}         0 ")
