"""What is read of gVisor's sockets: its table of TCP connections, and its metrics."""

import pytest

from snapshotstore.checkpoint import runsc_sockets

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1
   1: 02004D0A:D346 01004D0A:1E61 01 00000000:00000000 00:00000000 00000000     0        0 2
   2: 02004D0A:D347 01004D0A:1E61 06 00000000:00000000 00:00000000 00000000     0        0 0
   3: 0100007F:D348 0100007F:1E61 01 00000000:00000000 00:00000000 00000000     0        0 3
   4: 02004D0A:D349 01004D0A:1E61 08 00000000:00000000 00:00000000 00000000     0        0 4
  sl  local_address                         remote_address                        st
   0: B80D0120000000000000000001000000:0050 B80D0120000000000000000002000000:0051 01 0
   1: 0000000000000000FFFF00000100007F:0050 0000000000000000FFFF00000100007F:0051 01 0
   2: 00000000000000000000000001000000:0050 00000000000000000000000001000000:0051 01 0
"""


def test_connections_that_lead_out_are_told() -> None:
    assert runsc_sockets.connections(TABLE) == [
        "10.77.0.2:54086 -> 10.77.0.1:7777",
        "10.77.0.2:54089 -> 10.77.0.1:7777",
        "[2001:db8::1]:80 -> [2001:db8::2]:81",
    ]


@pytest.mark.parametrize(
    "metrics, count",
    [
        (b'# TYPE x gauge\nrunsc_netstack_tcp_current_open{iteration="a",sandbox="b"} 2 1796026508161\n', 2),
        (b"runsc_netstack_tcp_current_open 0 1\n", 0),
        (b"# nothing\n", None),
    ],
)
def test_how_many_connections_are_open(metrics: bytes, count: int | None) -> None:
    assert runsc_sockets.count_open(metrics) == count
