"""Receive DICOM series, upscale each with one loaded network, and send what was derived of it on.

python examples/receive.py 2.5 11112 pacs.example 104     # scale, own port, where to
"""

from __future__ import annotations

import sys
from collections import defaultdict
from datetime import UTC, datetime

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, build_context, evt
from pynetdicom.sop_class import MRImageStorage, Verification

from runtime import MetasrganError, Upscaler, __version__
from runtime.dicom import Series, series_of


def main(scale: str, port: str, host: str, host_port: str) -> None:
    received: dict[evt.Event, list[bytes]] = defaultdict(list)  # by association: one sends a series, or several

    def store(event: evt.Event) -> int:
        received[event.assoc].append(event.encoded_dataset())
        return 0x0000

    def finish(event: evt.Event) -> None:
        try:
            for series in series_of(received.pop(event.assoc, [])):
                print(series.problem or f"{series.shape} upscaled, {send(series)} slices sent on", flush=True)
        except (MetasrganError, ConnectionError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)

    def forget(event: evt.Event) -> None:
        received.pop(event.assoc, None)

    def send(series: Series) -> int:
        image = upscaler.volume(series.volume(), scale, axis=2)
        record = {
            "software": f"metasrgan-edge {__version__}",
            "device": upscaler.device,
            "scale": scale,
            "time": datetime.now(UTC).isoformat(),
        }
        onward = ae.associate(host, int(host_port))
        if not onward.is_established:
            raise ConnectionError(f"{host}:{host_port} takes no association: is it there, and does it know METASRGAN?")
        statuses = [onward.send_c_store(slice_) for slice_ in series.derive(image, f"metasrgan-edge ×{scale}", record)]
        onward.release()
        if any("Status" not in status or status.Status for status in statuses):
            raise ConnectionError(f"{host}:{host_port} did not take every slice: send the series again")
        return len(statuses)

    ae = AE("METASRGAN")
    for context in (build_context(Verification), *AllStoragePresentationContexts):
        ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    ae.add_requested_context(MRImageStorage)
    with Upscaler.load() as upscaler:
        handlers = [(evt.EVT_C_STORE, store), (evt.EVT_RELEASED, finish), (evt.EVT_ABORTED, forget)]
        print(f"listening on port {port}", flush=True)
        ae.start_server(("", int(port)), evt_handlers=handlers)


if __name__ == "__main__":
    main(*sys.argv[1:])
