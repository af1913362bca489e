"""mosec as its documentation shows it: `python mosec_app.py --port PORT`, with WORK=untouched|decode|detect."""

from __future__ import annotations

from mosec import Server, Worker
from works import WORK, Answer, work


class Detector(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.work = work()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[Answer]:
        return self.work(data)


if __name__ == "__main__":
    server = Server()
    # A detector takes both cores by itself, and no batch is faster for it than one image after the other.
    batch = 2 if WORK == "detect" else 16
    server.append_worker(Detector, num=2 if WORK == "decode" else 1, max_batch_size=batch, max_wait_time=1, timeout=600)
    server.run()
