"""DeepSpeed's converter, kept from running code: `python -m pipeline.engine.converter`, for its options see there."""

from deepspeed.checkpoint import ds_to_universal

import pipeline.engine.safe_loading  # noqa: F401

if __name__ == "__main__":
    ds_to_universal.main(ds_to_universal.parse_arguments())
