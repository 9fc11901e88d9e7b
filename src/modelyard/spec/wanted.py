"""The records that a deployment file is read into; each key's description is what the reference and editors show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from modelyard.records.base import Record
from modelyard.spec.price import Price
from modelyard.spec.sizes import ByteSize

API_VERSION = "modelyard/v1"
NAME_PATTERN = r"^[a-z0-9]+([.-][a-z0-9]+)*$"

SettingValue = str | int | float | bool
Name = Annotated[str, Meta(pattern=NAME_PATTERN, min_length=1, max_length=63)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Positive = Annotated[int, Meta(ge=1, le=1 << 40)]


class Limits(Record, forbid_unknown_fields=True):
    """Upper bounds; what is left out is planned from the model and the machine."""

    context_tokens: Annotated[
        Positive | None,
        Meta(description="Longest prompt plus answer, in tokens; the model's own limit if left out."),
    ] = None
    max_in_flight: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="Requests that one replica works on at the same time; planned if left out."),
    ] = None
    max_queued: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Requests that may wait for a replica; more are refused with 503.")
    ] = 64
    queue_timeout_s: Annotated[
        Seconds, Meta(description="How long a request may wait before it is refused with 503, in seconds.")
    ] = 30.0
    queued_bytes: Annotated[
        ByteSize | None,
        Meta(description="Memory that the bodies of waiting requests may take, such as 64MiB; that if left out."),
    ] = None
    overload_wait_s: Annotated[
        Seconds,
        Meta(description="In an overload that lasts, who would wait longer than this is refused at once, in seconds."),
    ] = 2.0
    reserved_seats: Annotated[
        float,
        Meta(
            ge=0,
            le=0.5,
            description="The part of the seats that, at most, stays free for keys below their share while several are"
            " active.",
        ),
    ] = 0.25
    adaptive_seats: Annotated[
        bool,
        Meta(
            description="Whether a replica is given fewer requests at once than `max_in_flight` while its first tokens "
            "come late: the others wait in the gateway, where keys, priorities and deadlines count."
        ),
    ] = True
    first_token_tolerance: Annotated[
        float,
        Meta(
            ge=1,
            le=1000,
            description="How many times what is expected of a prompt of its size its first token may take before that "
            "is late.",
        ),
    ] = 4.0
    kv_cache: Annotated[
        ByteSize | None,
        Meta(description="Memory of one replica for the keys and values of its requests, such as 1GiB."),
    ] = None
    memory: Annotated[
        ByteSize | None,
        Meta(description="Memory that all replicas together may take, such as 8GiB; the machine's if left out."),
    ] = None


class Timeouts(Record, forbid_unknown_fields=True):
    """How long to wait before something counts as failed, in seconds."""

    startup_s: Annotated[
        Seconds | None,
        Meta(description="From the start of an engine until it is ready; planned from the model's size if left out."),
    ] = None
    drain_s: Annotated[Seconds, Meta(description="For running requests to finish when a replica is stopped.")] = 30.0
    hang_s: Annotated[
        Seconds, Meta(description="Without a single token of progress before a busy engine is restarted.")
    ] = 20.0
    first_byte_s: Annotated[Seconds, Meta(description="For the first token of an answer.")] = 600.0
    stall_s: Annotated[Seconds, Meta(description="Between two pieces of an answer that has begun.")] = 300.0


Share = Annotated[float, Meta(ge=0, le=1)]


class Failover(Record, forbid_unknown_fields=True):
    """What happens when a replica fails a request. Until the first piece of its answer it is sent to another one."""

    sendings: Annotated[
        int, Meta(ge=1, le=64, description="To how many replicas one request is sent at most, one after the other.")
    ] = 3
    retry_share: Annotated[
        Share, Meta(description="What share of all requests may be sent again, so that an outage does not feed itself.")
    ] = 0.1
    retries_per_s: Annotated[
        float, Meta(ge=0, le=10_000, description="How many may be sent again each second besides.")
    ] = 3.0
    first_token_s: Annotated[
        Seconds | None,
        Meta(description="After this long without a token another replica is asked if one is free; never if left out."),
    ] = None
    on_broken_stream: Annotated[
        Literal["error", "resume"],
        Meta(
            description="When a replica dies in the middle of a stream: end it with an error event, or let another one "
            "go on from the text that was sent. Only plain text of one choice, with a seed or temperature 0."
        ),
    ] = "error"
    eject_after: Annotated[
        int, Meta(ge=1, le=10_000, description="After how many lost connections in a row a replica is taken out.")
    ] = 5
    eject_share: Annotated[
        float, Meta(gt=0, le=1, description="At what share of failures within ten seconds a replica is taken out ...")
    ] = 0.5
    eject_volume: Annotated[int, Meta(ge=1, le=1_000_000, description="... of at least this many requests.")] = 20
    eject_s: Annotated[
        Seconds, Meta(description="For how long; then one request may try it. Twice as long each further time ...")
    ] = 1.0
    eject_most_s: Annotated[Seconds, Meta(description="... up to this.")] = 30.0
    poison_deaths: Annotated[
        Literal[0, 2, 3, 4],
        Meta(
            description="A request that has ended the engine so often, the last time as the only one that may have "
            "done it, is refused with 422 for an hour; 0: never."
        ),
    ] = 2
    hedge_share: Annotated[
        float,
        Meta(
            ge=0,
            le=0.1,
            description="What share of all requests may be sent to a second replica because their first token is late: "
            "the faster of the two answers. Streams only; 0 for none.",
        ),
    ] = 0.0
    hedge_prompt_tokens: Annotated[
        Positive,
        Meta(description="Prompts of more tokens, estimated, are not sent to a second replica because of that."),
    ] = 512


# What would let a client load files of the engine's machine, take another tenant's cache, or run code there: no
# operator can mean that for every client.
NEVER_FORWARDED = frozenset(
    {"api_base", "api_key", "base_url", "cache_salt", "chat_template", "documents", "kv_transfer_params", "messages"}
    | {"model", "prompt", "prompt_embeds", "stream", "stream_options"}
)
FieldName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
FieldNames = Annotated[tuple[FieldName, ...], Meta(max_length=64)]


class Fields(Record, forbid_unknown_fields=True):
    """What becomes of single request fields, whatever is the rule for the others."""

    forward: Annotated[
        FieldNames,
        Meta(description="Fields that we do not know and the engine does, such as chat_template_kwargs: passed on."),
    ] = ()
    strip: Annotated[
        FieldNames, Meta(description="Fields that the engine never sees; a header of the answer names them.")
    ] = ()
    refuse: Annotated[FieldNames, Meta(description="Fields that are refused with 400, by name.")] = ()


class Prices(Record, forbid_unknown_fields=True):
    """What tokens cost. Amounts are for a million tokens, exact to six decimals."""

    currency: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=16,
            description="What the amounts are in, such as EUR; the same in every deployment, because sums are in it.",
        ),
    ]
    input: Annotated[Price, Meta(description="For a million tokens of prompts, such as 0.15.")]
    output: Annotated[Price, Meta(description="For a million tokens of answers.")]
    cached_input: Annotated[
        Price | None, Meta(description="For a million prompt tokens from the prefix cache; as `input` if left out.")
    ] = None


class Tls(Record, forbid_unknown_fields=True):
    cert: Annotated[str, Meta(description="Certificate chain in PEM; a path relative to this file.")]
    key: Annotated[str, Meta(description="Private key in PEM; a path relative to this file.")]
    client_ca: Annotated[
        str | None,
        Meta(
            description="Let in only clients with a certificate of these authorities (PEM; a path relative to this "
            "file). A key is asked of them all the same."
        ),
    ] = None


class Gateway(Record, forbid_unknown_fields=True):
    """Where clients talk to us: one gateway serves every deployment of the file."""

    host: Annotated[
        str, Meta(min_length=1, description="Address to listen on; beyond loopback a key and TLS are needed.")
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")] = 8000
    tls: Annotated[
        Tls | None, Meta(description="Serve HTTPS with this certificate; new files are taken in as they appear.")
    ] = None
    workers: Annotated[int, Meta(ge=1, le=64, description="Gateway processes that share the port.")] = 1
    connections_per_address: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Connections that one address (of IPv6: one /64 network) may hold; this machine's own are not "
            "counted. Raise it where a proxy on another machine speaks for all clients.",
        ),
    ] = 1024


class Deployment(Record, forbid_unknown_fields=True):
    """What is served under one public name."""

    name: Annotated[
        Name,
        Meta(description="The public name, sent by clients as `model`: lower-case letters, digits, dots, hyphens."),
    ]
    model: Annotated[
        str,
        Meta(
            min_length=1,
            description="A name of the catalogue, a path (starting with /, ./, ../ or ~/, or ending in .gguf; "
            "relative to this file) to a GGUF file or a model folder, or where a model is fetched from: "
            "hf://org/name[@revision][:quant], ollama://name[:tag], https:// or s3:// and a .gguf file.",
        ),
    ]
    engine: Annotated[str, Meta(min_length=1, description="The engine to run it with; `auto` plans one that can.")] = (
        "auto"
    )
    replicas: Annotated[int, Meta(ge=1, le=64, description="How many engines serve it side by side.")] = 1
    limits: Annotated[Limits, Meta(description="Upper bounds for requests and memory.")] = Limits()
    settings: Annotated[
        dict[str, SettingValue],
        Meta(description="Engine settings by name, in place of planned ones; `modelyard plan` shows them all."),
    ] = msgspec.field(default_factory=dict[str, SettingValue])
    timeouts: Annotated[Timeouts, Meta(description="How long to wait before something counts as failed.")] = Timeouts()
    failover: Annotated[Failover, Meta(description="What happens when a replica fails a request.")] = Failover()
    prices: Annotated[
        Prices | None,
        Meta(description="What its tokens cost; without them they cost nothing and budgets are in tokens."),
    ] = None
    unknown_fields: Annotated[
        Literal["strip", "refuse"],
        Meta(description="Request fields that we do not know: left out with a warning header, or refused with 400."),
    ] = "strip"
    fields: Annotated[Fields, Meta(description="Exceptions for request fields by name.")] = Fields()
    isolation: Annotated[
        Literal["shared", "salted", "strict"],
        Meta(
            description="Whether one key can learn from the time of its first token what another has asked: `salted` "
            "keeps the cached prefixes of keys apart where the engine can (vllm), `strict` also switches the prefix "
            "cache off where it cannot, `shared` lets all keys share one."
        ),
    ] = "salted"


class DeploymentFile(Record):
    """A whole file, checked: paths in it are absolute."""

    deployments: tuple[Deployment, ...]
    gateway: Gateway


ApiVersionKey = Annotated[Literal["modelyard/v1"], Meta(description="The version of this format.")]
GatewayKey = Annotated[Gateway, Meta(description="Where clients talk to the deployments of this file.")]


class OneDeployment(Deployment, kw_only=True, forbid_unknown_fields=True):
    """One deployment: its keys stand at the top of the file."""

    api_version: ApiVersionKey = msgspec.field(name="apiVersion")
    gateway: GatewayKey = Gateway()


class ManyDeployments(Record, kw_only=True, forbid_unknown_fields=True):
    """Several deployments behind one gateway."""

    api_version: ApiVersionKey = msgspec.field(name="apiVersion")
    deployments: Annotated[
        tuple[Deployment, ...], Meta(min_length=1, description="The deployments; their names differ.")
    ]
    gateway: GatewayKey = Gateway()


def is_path(model: str) -> bool:
    """Whether a model reference means files on this machine rather than a name of the catalogue or a URL."""
    if "://" in model:
        return False
    return model.startswith(("/", "./", "../", "~/")) or model in (".", "..") or model.lower().endswith(".gguf")


def absolute(path: str, folder: Path) -> str:
    """`..` stays as written: resolving it would follow links that the file gate wants to see."""
    return str((folder / Path(path).expanduser()).absolute())
