"""Documents that are made to take a reader's time, its memory or its stack."""

from __future__ import annotations

import io
import zipfile
import zlib

from .pdf import pdf_from, pdf_of


def decompression_bomb(megabytes: int = 400) -> bytes:
    """A PDF whose one page is so many megabytes of text in a stream of a few hundred kilobytes."""
    packer = zlib.compressobj(9)
    line = b"0 -14 Td (the quick brown fox) Tj\n"
    block = line * (2**20 // len(line))
    stream = packer.compress(b"BT /F1 12 Tf 72 720 Td\n")
    stream += b"".join(packer.compress(block) for _ in range(megabytes)) + packer.compress(b"ET") + packer.flush()
    page = (
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 5 0 R "
        b"/Resources << /Font << /F1 3 0 R >> >> >>"
    )
    return pdf_from(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [4 0 R] /Count 1 >>",
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            page,
            b"<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream" % (len(stream), stream),
        ]
    )


def million_pages() -> bytes:
    """A PDF of a few kilobytes whose tree of pages has a million leaves, all of them the same."""
    hundred = " ".join(["{} 0 R"] * 100)
    shown = b"BT /F1 12 Tf 72 720 Td (again) Tj ET"
    return pdf_from(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            f"<< /Type /Pages /Kids [{hundred.format(*[6] * 100)}] /Count 1000000 >>".encode(),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            b"<< /Type /Page /MediaBox [0 0 612 792] /Contents 5 0 R /Resources << /Font << /F1 3 0 R >> >> >>",
            b"<< /Length %d >>\nstream\n%b\nendstream" % (len(shown), shown),
            f"<< /Type /Pages /Kids [{hundred.format(*[7] * 100)}] /Count 10000 >>".encode(),
            f"<< /Type /Pages /Kids [{hundred.format(*[4] * 100)}] /Count 100 >>".encode(),
        ]
    )


def endless_tree() -> bytes:
    """A PDF whose pages are its pages."""
    return pdf_from([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 1000000 >>"])


def nested_objects() -> bytes:
    """A PDF with an array in an array, a million deep."""
    deep = b"[" * 1_000_000 + b"]" * 1_000_000
    return pdf_from([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 /Deep %b >>" % deep])


def cut_off() -> bytes:
    """The first half of a PDF."""
    whole = pdf_of(["all of it"])
    return whole[: len(whole) // 2]


def zip_bomb() -> bytes:
    """A word processor's file of a hundred kilobytes that holds a hundred megabytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as part:
        for _ in range(100):
            part.write(b"<w:t>a</w:t>" * 87_381)
    return file.getvalue()
