"""A Retriever to a model hub and back."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from twotower.bundle import save_bundle
from twotower.errors import explain_options, need
from twotower.export.card import Measured, model_card
from twotower.feature_stores.base import FeatureStore
from twotower.files import PathLike
from twotower.serving.retriever import Retriever


class HubApi(Protocol):
    """What is asked of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> Any: ...

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: str, commit_message: str, delete_patterns: str
    ) -> Any: ...

    def snapshot_download(self, repo_id: str, *, repo_type: str, revision: str | None) -> Any: ...


@explain_options
def push_to_hub(
    retriever: Retriever | PathLike,
    repo_id: str,
    *,
    license: str,
    description: str = "",
    metrics: Measured | None = None,
    example: Mapping[str, object] | None = None,
    private: bool = True,
    users: bool = False,
    message: str = "Upload a twotower bundle",
    api: HubApi | None = None,
) -> None:
    """Upload a bundle with a model card, as one commit; files of an earlier upload that are no more are deleted.

    The bundle holds the Preprocessor's vocabularies and the items' table: raw ids, of users too where the query tower reads
    them. That is why the repository is private unless you say otherwise. What the feature store knows of the users, their
    histories and seen items, stays here unless you say `users=True`, and so does `origin`, which names files of yours.

    Args:
        retriever: or the folder of its bundle. Load one with classes of your own first (`custom_objects`).
        repo_id: "name" or "organisation/name"; the repository is made when there is none.
        license: as the hub calls it, such as "apache-2.0", "cc-by-4.0" or "other".
        description: Markdown for the card: of which data, for what.
        metrics: for the card's table, an Evaluation or a dict.
        example: a raw query for the card's snippet; by default of each column the first value of its vocabulary.
        private: of a repository that is made; an older one stays as it is.
        users: whether the features and seen items of all users are uploaded, by id. Without them, questions by user id need
            a store: `Retriever.load(..., users=)`.
        message: of the commit.
        api: makes the calls; by default `huggingface_hub.HfApi()`, with the token that `hf auth login` stored.

    Raises:
        ValueError: a damaged bundle, or an example that is no query.
        ImportError: without the extra: `pip install 'twotower[hub]'`.

    Example:
        >>> push_to_hub(retriever, "me/films", license="apache-2.0", metrics=evaluation)    # doctest: +SKIP
        >>> load_from_hub("me/films").recommend([{"user_id": 42}], k=5)                     # doctest: +SKIP
    """
    held = retriever if isinstance(retriever, Retriever) else Retriever.load(retriever)
    bundle = replace(held.bundle, users=held.bundle.users if users else None, origin={})
    card = model_card(
        held,
        repo_id,
        license,
        description=description,
        metrics=metrics,
        example=example,
        users=0 if bundle.users is None else len(bundle.users),
    )
    calls = _api() if api is None else api
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside) / "bundle"
        save_bundle(bundle, folder)
        (folder / "README.md").write_text(card)
        calls.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
        calls.upload_folder(
            repo_id=repo_id, repo_type="model", folder_path=str(folder), commit_message=message, delete_patterns="*"
        )


@explain_options
def load_from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    custom_objects: Mapping[str, type] | None = None,
    users: FeatureStore | None = None,
    api: HubApi | None = None,
) -> Retriever:
    """Download what `push_to_hub` uploaded, verify its checksums, and load it.

    Args:
        repo_id: "organisation/name".
        revision: a branch, a tag or a commit; None for the newest. Only a commit is the same tomorrow.
        custom_objects: classes of your own that the model is built from, by name.
        users: a feature store, which a bundle on a hub lacks unless its maker said otherwise.
        api: as in push_to_hub.

    Raises:
        ValueError: the repository holds no bundle, or a damaged one.
        ImportError: without the extra: `pip install 'twotower[hub]'`.
    """
    calls = _api() if api is None else api
    folder = calls.snapshot_download(repo_id, repo_type="model", revision=revision)
    return Retriever.load(folder, custom_objects, users=users)


def _api() -> HubApi:
    api: HubApi = need("huggingface_hub", "the model hub", "hub").HfApi(library_name="twotower")
    return api
