"""A port that cannot be used is refused before the server takes the process's place."""

import socket

import pytest

from mgc.core.errors import InputError
from mgc.tracking.ui import serve


def test_a_busy_port_is_refused_and_the_next_free_one_offered():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(InputError) as caught:
            serve(port)
    said = caught.value.for_command_line()
    assert said.startswith(f"--port {port}: address already in use; ")
    offered = int(said.split()[-3])
    assert offered > port
    with socket.create_server(("127.0.0.1", offered)):
        pass


@pytest.mark.parametrize("port", [0, -1, 65_536, 99_999])
def test_a_number_that_is_no_port_is_refused(port):
    with pytest.raises(InputError, match=rf"`port={port}`: must be from 1 to 65535"):
        serve(port)
