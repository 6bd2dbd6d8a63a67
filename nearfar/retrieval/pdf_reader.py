"""PDF pages as text, by PDFium; knows nothing about pictures."""

from __future__ import annotations

import re
import threading
from typing import Any

from nearfar.errors import ConfigError

from .documents import Block, Document, Unreadable

_lock = threading.Lock()  # PDFium is not to be called by two threads

_PARAGRAPH = re.compile(r"\S(?:.*\S)?(?:\n[^\S\n]*\S.*)*")


def read_pdf(data: bytes) -> Document:
    """The pages' text, each block with its page, counted from 1.

    Raises:
        Unreadable: broken, locked by a password, or without any text, as scans are.
        ConfigError: pypdfium2 is not installed.
    """
    try:
        import pypdfium2
    except ImportError as exc:
        raise ConfigError("PDF files need pypdfium2. Install it: pip install 'nearfar[retrieval]'") from exc
    with _lock:
        try:
            pdf = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as exc:
            locked = "assword" in str(exc)
            raise Unreadable("is locked by a password" if locked else f"is a broken PDF: {exc}") from exc
        try:
            pages, problems = _pages(pdf, pypdfium2.PdfiumError)
            title = str(pdf.get_metadata_value("Title") or "").strip()
        finally:
            pdf.close()
    if not any(page.strip() for page in pages):
        raise Unreadable(problems[0] if problems else "has no text (a scan?); run it through OCR first")
    blocks: list[Block] = []
    start = 0
    for number, page in enumerate(pages, 1):
        blocks.extend(
            Block(start + match.start(), start + match.end(), {"page": number}) for match in _PARAGRAPH.finditer(page)
        )
        start += len(page) + 1
    return Document("\f".join(pages), "pdf", tuple(blocks), {"title": title} if title else {}, tuple(problems))


def _pages(pdf: Any, error: type[Exception]) -> tuple[list[str], list[str]]:
    pages, problems = [], []
    for number in range(len(pdf)):
        try:
            page = pdf[number]
            words = page.get_textpage()
            pages.append(words.get_text_range().replace("\r\n", "\n").replace("\r", "\n").replace("\x00", ""))
            words.close()
            page.close()
        except error as exc:
            pages.append("")
            problems.append(f"page {number + 1} cannot be read: {exc}")
    return pages, problems
