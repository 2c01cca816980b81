"""Where the data sets that are known by name are published, and the checksums of their files.

Every checksum is published, by the authors or by a library that downloads the same file: none was computed here. The
SHA-256 sums are those of TensorFlow Datasets (tensorflow_datasets/url_checksums/mnist.txt, kmnist.txt, emnist.txt,
cifar10.txt). The MD5 sums are those of torchvision (torchvision/datasets/mnist.py); those of Fashion-MNIST are also
on the page of its authors, who publish no others.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ffstream.data.download import RemoteFile

Labels = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """The mirrors (base URLs, tried in order) and the files of a data set.

    `first_labels`: the first labels of the two splits. They tell files without a NAME apart, whatever the files are
    called and however they are compressed. `folder`: the name of its folder in the cache and below FFSTREAM_MIRROR,
    if it is not that of the data set.
    """

    mirrors: tuple[str, ...]
    files: tuple[RemoteFile, ...]
    first_labels: tuple[Labels, Labels] | None = None
    folder: str | None = None


MNIST = Source(
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    first_labels=((5, 0, 4, 1, 9, 2, 1, 3, 1, 4), (7, 2, 1, 0, 4, 1, 4, 9, 5, 9)),
    files=(
        RemoteFile(
            "train-images-idx3-ubyte.gz",
            ("sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",),
        ),
        RemoteFile(
            "train-labels-idx1-ubyte.gz",
            ("sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",),
        ),
        RemoteFile(
            "t10k-images-idx3-ubyte.gz",
            ("sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",),
        ),
        RemoteFile(
            "t10k-labels-idx1-ubyte.gz",
            ("sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",),
        ),
    ),
)

FASHION_MNIST = Source(
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    first_labels=((9, 0, 0, 3, 0, 2, 7, 2, 5, 5), (9, 2, 1, 1, 6, 1, 4, 6, 5, 7)),
    files=(
        RemoteFile("train-images-idx3-ubyte.gz", ("md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",)),
        RemoteFile("train-labels-idx1-ubyte.gz", ("md5:25c81989df183df01b3e8a0aad5dffbe",)),
        RemoteFile("t10k-images-idx3-ubyte.gz", ("md5:bef4ecab320f06d8554ea6380940ec79",)),
        RemoteFile("t10k-labels-idx1-ubyte.gz", ("md5:bb300cfdad3c16e7a12a480ee83cd310",)),
    ),
)

KMNIST = Source(
    mirrors=("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
    files=(
        RemoteFile(
            "train-images-idx3-ubyte.gz",
            ("sha256:51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",),
        ),
        RemoteFile(
            "train-labels-idx1-ubyte.gz",
            ("sha256:e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",),
        ),
        RemoteFile(
            "t10k-images-idx3-ubyte.gz",
            ("sha256:edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",),
        ),
        RemoteFile(
            "t10k-labels-idx1-ubyte.gz",
            ("sha256:20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",),
        ),
    ),
)

QMNIST = Source(
    mirrors=("https://raw.githubusercontent.com/facebookresearch/qmnist/master/",),
    files=(
        RemoteFile("qmnist-train-images-idx3-ubyte.gz", ("md5:ed72d4157d28c017586c42bc6afe6370",)),
        RemoteFile("qmnist-train-labels-idx2-int.gz", ("md5:0058f8dd561b90ffdd0f734c6a30e5e4",)),
        RemoteFile("qmnist-test-images-idx3-ubyte.gz", ("md5:1394631089c404de565df7b7aeaf9412",)),
        RemoteFile("qmnist-test-labels-idx2-int.gz", ("md5:5b5b05890a5e13444e108efe57b788aa",)),
    ),
)

# One archive of 562 MB has all six.
EMNIST = Source(
    mirrors=(
        "https://biometrics.nist.gov/cs_links/EMNIST/",
        "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/",
    ),
    files=(
        RemoteFile(
            "gzip.zip",
            (
                "sha256:fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
                "md5:58c8d27c78d21e728a6bc7b3cc06412e",
            ),
            max_bytes=1 << 30,
        ),
    ),
    folder="emnist",
)

CIFAR_10 = Source(
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    files=(
        RemoteFile(
            "cifar-10-binary.tar.gz",
            ("sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",),
            max_bytes=256 << 20,
        ),
    ),
)

SOURCES: Mapping[str, Source] = {
    "mnist": MNIST,
    "fashion-mnist": FASHION_MNIST,
    "kmnist": KMNIST,
    "qmnist": QMNIST,
    **{f"emnist-{split}": EMNIST for split in ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")},
    "cifar-10": CIFAR_10,
}
