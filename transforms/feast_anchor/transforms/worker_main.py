"""One worker process of FnApiRunner: `python -m feast_anchor.transforms.worker_main`.

Beam's own worker, with two differences. It ends when its driver does, however that ended (its
standard input is a pipe that the driver holds): otherwise a killed driver's workers would go on
beside those of the next attempt. And it tells its driver about warnings only.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

from .quiet import not_from_beam


def main() -> None:
    """Work until the driver has nothing more to do, or is gone."""
    threading.Thread(target=_end_with_driver, daemon=True).start()
    logging.getLogger().addFilter(not_from_beam)
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    os.environ["PIPELINE_OPTIONS"] = '{"default_sdk_harness_log_level": "WARNING"}'
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


def _end_with_driver() -> None:
    sys.stdin.buffer.read()  # returns when the other end is closed
    os._exit(1)


if __name__ == "__main__":
    main()
