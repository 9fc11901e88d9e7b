"""The command line with one more engine, `tiny`, whose wheels are made on the spot: run by path, as `modelyard` is.

MODELYARD_TEST_REQUIREMENTS holds its Requirements as JSON, MODELYARD_TEST_GPU_BUILDS those of its other builds."""

from __future__ import annotations

import os

import msgspec

from modelyard.cli import main
from modelyard.engines import registry
from modelyard.engines.contract import Engine, Requirements
from modelyard.engines.fake import FakeAdapter


class Tiny(FakeAdapter):
    name = "tiny"
    requirements = msgspec.json.decode(os.environ["MODELYARD_TEST_REQUIREMENTS"], type=Requirements)
    gpu_builds = msgspec.json.decode(os.environ.get("MODELYARD_TEST_GPU_BUILDS", "[]"), type=tuple[Requirements, ...])


def tiny() -> Engine:
    return Tiny()


if __name__ == "__main__":
    registry._ENGINES["tiny"] = tiny
    main()
