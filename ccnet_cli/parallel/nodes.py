"""The machines of a run, and where they meet."""

from dataclasses import dataclass

from ccnet_cli.errors import InputError


@dataclass(frozen=True)
class Nodes:
    """The machines of a run: how many, which of them this is, and the address of their store."""

    count: int = 1
    rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0


def parse_nodes(count: int | None, rank: int | None, rendezvous: str | None) -> Nodes:
    """The nodes that the options --nodes, --node-rank and --rendezvous describe."""
    if count is None or count == 1:
        if rank or rendezvous:
            raise InputError("option --nodes", "missing", "give the number of machines, such as --nodes 2")
        return Nodes()
    if rank is None or rendezvous is None:
        missing = "--node-rank" if rank is None else "--rendezvous"
        raise InputError(f"option {missing}", "missing", "give --node-rank K and --rendezvous HOST:PORT too")
    if rank >= count:
        raise InputError(f"option --node-rank {rank}", f"there are {count}, counted from 0", "correct it or --nodes")
    host, _, port = rendezvous.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise InputError(f"option --rendezvous {rendezvous}", "not HOST:PORT", "write for example 10.0.0.1:29500")
    return Nodes(count, rank, host, int(port))
