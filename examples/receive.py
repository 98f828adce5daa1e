"""Receive DICOM series, upscale each with one loaded network, and send what was derived of it on.

python examples/receive.py 2.5 11112 pacs.example 104     # scale, own port, where to
"""

from __future__ import annotations

import sys
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_context, evt

from runtime import MetasrganError, Upscaler, __version__
from runtime.dicom import Series, datasets, series_of


def main(scale: str, port: str, host: str, host_port: str) -> None:
    upscaler = Upscaler.load()
    received: dict[Any, list[bytes]] = defaultdict(list)  # files, by the association over which they come

    def store(event: evt.Event) -> int:
        received[event.assoc].append(event.encoded_dataset())
        return 0x0000  # success

    def finish(event: evt.Event) -> None:
        try:
            for series in series_of(received.pop(event.assoc)) if event.assoc in received else ():
                refused = series.problem or series.doubt
                print(f"not upscaled: it {refused}" if refused else f"{send(series)} slices sent", flush=True)
        except (MetasrganError, ConnectionError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)

    def send(series: Series) -> int:
        image = upscaler.volume(series.volume(), scale, axis=2)
        record = {"software": f"metasrgan-edge {__version__}", "device": upscaler.device, "scale": scale}
        record["time"] = datetime.now(UTC).isoformat()
        slices = list(datasets(series, image, f"metasrgan-edge ×{scale}", record))
        onward = ae.associate(host, int(host_port), contexts=[build_context(slices[0].SOPClassUID)])
        statuses = [onward.send_c_store(slice_) for slice_ in slices] if onward.is_established else []
        onward.release()
        if not statuses or any(status.get("Status") != 0x0000 for status in statuses):
            raise ConnectionError(f"{host}:{host_port} did not take every slice: see that it knows METASRGAN, and send again")
        return len(statuses)

    ae = AE("METASRGAN")
    ae.add_supported_context("1.2.840.10008.1.1")  # verification, a scanner's ping
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    forget = (evt.EVT_ABORTED, lambda event: received.pop(event.assoc, None))
    ae.start_server(("", int(port)), evt_handlers=[(evt.EVT_C_STORE, store), (evt.EVT_RELEASED, finish), forget])


if __name__ == "__main__":
    main(*sys.argv[1:])
