"""The only place for package metadata: ranges here, the tested combination in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "seal/__init__.py").read_text())[1]

setup(
    name="seal",
    version=VERSION,
    description="SEAL: safety-enhanced LLM fine-tuning by bilevel data selection",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["seal", "seal.*"]),
    package_data={"seal.report": ["*.jinja"]},
    install_requires=[
        "torch>=2.13",
        "numpy>=2.0",
        "transformers>=5.20,<6",
        "tokenizers>=0.22",
        "huggingface-hub>=1.0",
        "deepspeed>=0.19.8,<0.20",
        "accelerate>=1.10",
        "peft>=0.20",
        "datasets>=5.0,<6",
        "pyarrow>=21",
        "safetensors>=0.5",
        "jinja2>=3.1",
        "markupsafe>=3.0",
        "packaging>=24",
        "pyyaml>=6.0",
        "tqdm>=4.66",
        "scipy>=1.13",
        "psutil>=6.0",
    ],
    extras_require={
        "gpu": ["flash-attn>=2.8", "liger-kernel>=0.8.2", "bitsandbytes>=0.48"],
        "track": ["wandb>=0.20", "tensorboard>=2.18"],
        "judge": ["openai>=2.0", "scikit-learn>=1.5"],
        "trl": ["trl>=1.16"],
        "completion": ["shtab>=1.7"],
        "dsir": ["data-selection>=1.0.3"],
        "study": ["matplotlib>=3.9", "scikit-learn>=1.5", "gguf>=0.17"],
        "test": [
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.14",
            "mkdocs>=1.6",
            "mkdocs-material>=9.6",
            "mkdocstrings>=1.0",
            "mkdocstrings-python>=2.0",
            "fastapi>=0.115",
            "uvicorn>=0.30",
        ],
    },
    entry_points={"console_scripts": ["seal = seal.command:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Environment :: GPU :: NVIDIA CUDA",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Distributed Computing",
    ],
)
