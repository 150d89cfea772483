"""Write the photographs that `prepare.py` gathered as PNG files, for `data=image_folder`.

python experiments/gpu/unpack.py photographs.safetensors FOLDER
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from safetensors import safe_open


def main() -> None:
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with safe_open(source, "pt") as file, ThreadPoolExecutor() as pool:
        classes = file.metadata()["classes"].split(",")
        for split in ("train", "test"):
            images = file.get_tensor(f"{split}_images").permute(0, 2, 3, 1).contiguous().numpy()
            labels = file.get_tensor(f"{split}_labels").tolist()
            for name in classes:
                (folder / split / name).mkdir(parents=True, exist_ok=True)
            paths = [folder / split / classes[label] / f"{index:05d}.png" for index, label in enumerate(labels)]
            list(pool.map(lambda image, path: Image.fromarray(image).save(path, compress_level=1), images, paths))


if __name__ == "__main__":
    main()
