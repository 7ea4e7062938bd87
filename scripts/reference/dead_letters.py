"""All reasons for which a record is dead-lettered."""

from __future__ import annotations

from reference.sections import table
from streamer.events import Reason

_MEANINGS = {
    Reason.EMPTY: ("event", "The record has no value where one is needed.", "Fix the producer."),
    Reason.TOO_LARGE: ("event", "The value is larger than 1 MiB.", "Send fewer candidates or shorter attributes."),
    Reason.NOT_JSON: ("event", "The value is not JSON in UTF-8.", "Fix the producer."),
    Reason.WRONG_TYPE: ("event", "A field is missing or has the wrong type.", "Compare the event with its schema."),
    Reason.LIMIT_EXCEEDED: ("event", "A field is longer than its limit, or empty.", "Compare it with its schema."),
    Reason.BLANK_QUERY: ("event", "The query is empty or only blanks.", "Do not publish such queries."),
    Reason.NON_FINITE_SCORE: ("event", "A number is NaN or infinite.", "Fix the engine's score."),
    Reason.DUPLICATE_CLIP_ID: ("event", "A clip occurs more than once in `results`.", "Remove duplicates first."),
    Reason.KEY_MISMATCH: ("event", "The record's key is not the event's id.", "Key records by the id, or not at all."),
    Reason.FROM_THE_FUTURE: (
        "event",
        "`uploaded_at` is after the record's time by more than `STREAMER_MAX_CLOCK_SKEW`.",
        "Correct the producer's clock, and publish the upload again.",
    ),
    Reason.URI_REFUSED: (
        "clip",
        "The URI is outside the allowed prefixes or networks.",
        "Add the prefix to `STREAMER_ALLOWED_URIS`, or the network to `STREAMER_ALLOWED_NETWORKS`.",
    ),
    Reason.NOT_FOUND: ("clip", "The source says that the file does not exist.", "Upload the file, then redrive."),
    Reason.FETCH_FAILED: (
        "clip",
        "The file could not be fetched within `STREAMER_FETCH_RETRY_TIMEOUT`, or the source refused.",
        "Repair the source, then redrive.",
    ),
    Reason.CLIP_TOO_LARGE: (
        "clip",
        "The file, its frames or its length exceed a limit.",
        "Raise the `STREAMER_MAX_CLIP_...` limit if the clip is legitimate.",
    ),
    Reason.NO_VIDEO: ("clip", "The file has no video stream.", "Fix the uploader."),
    Reason.DECODE_FAILED: ("clip", "No frame of the file can be decoded.", "Upload the file again."),
    Reason.DECODE_TIMEOUT: (
        "clip",
        "Decoding took longer than `STREAMER_DECODE_TIMEOUT`, twice.",
        "Raise the limit if the clip is legitimate.",
    ),
    Reason.DECODER_CRASHED: (
        "clip",
        "The decoder process crashed or exceeded `STREAMER_DECODE_MEMORY`, twice.",
        "Inspect the file: it may be malicious.",
    ),
    Reason.ENCODE_FAILED: ("service", "The model failed on the clip's frames.", "Read the log, then redrive."),
    Reason.UNREADABLE: (
        "event",
        "The Kafka client cannot decode the batch; the dead letter names its offsets and has no key and no value.",
        "Raise `STREAMER_MAX_BATCH_BYTES` if the batch is legitimate, and produce its events again.",
    ),
    Reason.INTERNAL: ("service", "An error in this software.", "Report it with the log's traceback."),
}


def markdown() -> str:
    """Return a table of the reasons.

    Raises KeyError if a reason has no explanation here.
    """
    return table(
        ("reason", "concerns", "meaning", "remedy"), ((f"`{reason.value}`", *_MEANINGS[reason]) for reason in Reason)
    )
