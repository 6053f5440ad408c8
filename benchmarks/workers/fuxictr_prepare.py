"""FuxiCTR's own preprocessing: `FeatureProcessor` and `build_dataset` on three csv files.

Usage: fuxictr_prepare.py FOLDER, which holds fields.json (names, and the least count of a token) and
train.csv, valid.csv, test.csv.
"""

import json
import sys
from pathlib import Path

from fuxictr.preprocess import FeatureProcessor, build_dataset


def main() -> None:
    folder = Path(sys.argv[1])
    fields = json.loads((folder / "fields.json").read_text(encoding="utf-8"))
    processor = FeatureProcessor(
        feature_cols=[
            {
                "name": fields["categorical"],
                "active": True,
                "dtype": "str",
                "type": "categorical",
                "min_categr_count": fields["min_count"],
            }
        ],
        label_col={"name": fields["label"], "dtype": "float"},
        dataset_id="fuxictr",
        data_root=str(folder),
    )
    build_dataset(
        processor,
        train_data=str(folder / "train.csv"),
        valid_data=str(folder / "valid.csv"),
        test_data=str(folder / "test.csv"),
    )


if __name__ == "__main__":
    main()
