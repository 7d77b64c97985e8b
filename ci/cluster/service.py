"""A service's address, as kube-proxy gives one: `service.py ADDRESS PORT POD` passes what comes to ADDRESS on to the same port of POD."""
import socket
import sys
import threading
import time


def _copy(source, target):
    while True:
        data = source.recv(65536)
        if not data:
            break
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def _pass_on(client, pod):
    while True:  # the pod may listen later: who comes early would try again
        try:
            behind = socket.create_connection(pod)
            break
        except OSError:
            time.sleep(0.1)
    threading.Thread(target=_copy, args=(behind, client), daemon=True).start()
    _copy(client, behind)


def main():
    """Serve until killed."""
    address, port, pod = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with socket.create_server((address, port)) as server:
        while True:
            client, _ = server.accept()
            threading.Thread(target=_pass_on, args=(client, (pod, port)), daemon=True).start()


if __name__ == "__main__":
    main()
