# SPDX-License-Identifier: Apache-2.0
"""Package metadata. It lives here because EL9's setuptools 53 ignores a [project] table."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "vmsnap/__init__.py").read_text(encoding="utf-8"), re.M
)
assert VERSION

setup(
    name="vmsnap",
    version=VERSION.group(1),
    description="Application-consistent snapshots of a Linux VM, from inside it",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["vmsnap", "vmsnap.*"]),
    package_data={
        "vmsnap": ["py.typed"],
        "vmsnap.config": ["app.schema.json"],
        "vmsnap.provision": ["provision.schema.json"],
    },
    scripts=["bin/vmsnap"],
    python_requires=">=3.9",
    install_requires=["distro", "sdnotify", "jsonschema"],
    classifiers=[
        "Environment :: Console",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: System :: Archiving :: Backup",
    ],
)
