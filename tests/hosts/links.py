"""Network links and addresses, asked of the kernel by netlink: what `ip link` and `ip addr` do, without the package."""

import os
import socket
import struct

NLMSG_ERROR = 2
RTM_NEWLINK, RTM_NEWADDR = 16, 20
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_NET_NS_PID = 1, 3, 10, 18, 19
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFF_UP = 1

# Left to itself, a switch takes the lowest address of its links: with the host whose link that was it would lose it,
# and the other hosts would send to nobody until they ask again.
SWITCH_ADDRESS = bytes.fromhex("020000000001")


def create_bridge(name):
    """Create a switch that links can be put on."""
    _create(_attribute(IFLA_IFNAME, name) + _attribute(IFLA_ADDRESS, SWITCH_ADDRESS) + _kind("bridge"))


def create_pair(name, peer, pid):
    """Create a cable: one end here, the other in the network of process `pid`."""
    far_end = _link() + _attribute(IFLA_IFNAME, peer) + _attribute(IFLA_NET_NS_PID, pid)
    _create(_attribute(IFLA_IFNAME, name) + _kind("veth", _attribute(VETH_INFO_PEER, far_end)))


def put_on_bridge(name, bridge):
    """Connect a link with a switch."""
    _ask(RTM_NEWLINK, _link(name) + _attribute(IFLA_MASTER, socket.if_nametoindex(bridge)))


def switch(name, *, on):
    """Set a link up or down."""
    _ask(RTM_NEWLINK, _link(name, flags=IFF_UP if on else 0))


def add_address(name, address, prefix_length):
    """Give a link an IPv4 address."""
    packed = socket.inet_aton(address)
    header = struct.pack("=BBBBi", socket.AF_INET, prefix_length, 0, 0, socket.if_nametoindex(name))
    attributes = _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed)
    _ask(RTM_NEWADDR, header + attributes, NLM_F_CREATE | NLM_F_EXCL)


def _create(attributes):
    _ask(RTM_NEWLINK, _link() + attributes, NLM_F_CREATE | NLM_F_EXCL)


def _link(name=None, flags=0):
    index = socket.if_nametoindex(name) if name else 0
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, IFF_UP if name else 0)


def _kind(kind, data=b""):
    return _attribute(IFLA_LINKINFO, _attribute(IFLA_INFO_KIND, kind) + _attribute(IFLA_INFO_DATA, data))


def _attribute(kind, value):
    if isinstance(value, str):
        value = value.encode() + b"\0"
    elif isinstance(value, int):
        value = struct.pack("=I", value)
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _ask(kind, body, flags=0):
    header = struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.sendall(header + body)
        reply = kernel.recv(65536)
    _, reply_kind = struct.unpack_from("=IH", reply)
    (error,) = struct.unpack_from("=i", reply, 16)
    if reply_kind != NLMSG_ERROR or error:
        raise OSError(-error, os.strerror(-error))
