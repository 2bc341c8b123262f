"""The first program in the sandbox: takes the limits upon itself, then becomes the untrusted one.

It runs alone, with the standard library only, and reads what to do from a sealed file descriptor. Nothing that it knows
is worth hiding from the program: the code, its files, its arguments.
"""

import _socket
import marshal
import os
import resource
import sys


def main() -> None:
    payload_fd, ready_fd = int(sys.argv[1]), int(sys.argv[2])
    with open(payload_fd, "rb") as file:
        payload = marshal.load(file)
    os.umask(0o022)
    if payload["uid"] is not None:  # started by root without a user namespace: become a user whom nobody else is
        os.setgroups([])
        os.setresgid(payload["uid"], payload["uid"], payload["uid"])
        os.setresuid(payload["uid"], payload["uid"], payload["uid"])
    os.chdir("/work")
    for name, content in payload["files"].items():
        os.makedirs(os.path.dirname(os.path.join("/work", name)), exist_ok=True)
        with open(os.path.join("/work", name), "wb") as file:
            file.write(content)
    for kind, value in payload["rlimits"].items():
        resource.setrlimit(getattr(resource, kind), (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (payload["cpu_s"], payload["cpu_s"] + 1))
    code = payload["code"]
    sys.path[:] = [p for p in sys.path if p != "/runtime"] + ["/runtime/packages", "/work"]
    sys.argv[:] = ["main.py", *payload["argv"]]
    _report_ready(ready_fd)
    _become(code)


def _report_ready(fd: int) -> None:
    """Says that the untrusted part begins, and hands out the work folder, so that its files can be counted."""
    folder = os.open("/work", os.O_RDONLY | os.O_DIRECTORY)
    ready = _socket.socket(fileno=fd)
    ready.sendmsg([b"r"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, folder.to_bytes(4, sys.byteorder))])
    ready.close()
    os.close(folder)


def _become(code: str) -> None:
    try:
        exec(compile(code, "main.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    except SystemExit:
        raise
    except BaseException as error:
        import linecache
        import traceback

        linecache.cache["main.py"] = (len(code), None, code.splitlines(True), "main.py")
        trace = error.__traceback__.tb_next if error.__traceback__ else None  # without this frame
        traceback.print_exception(type(error), error, trace)
        sys.exit(1)


main()
