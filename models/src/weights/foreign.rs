//! Files that are something else than their names promise: what downloads leave behind when they fail, and weights of
//! other formats.

/// Bytes of text that are quoted of a file that should have tensors.
const QUOTED_BYTES_MAX: usize = 120;
/// An answer in plain text that was saved as a file is not longer.
const ANSWER_BYTES_MAX: usize = 4096;

/// What a text or weight file is where a download failed, with how to get the file that was meant.
pub(super) fn failed_download(bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        return Some("the file is empty: download it again".to_owned());
    }
    if is_pointer(bytes) {
        return Some(pointer(bytes));
    }
    is_page(bytes).then(|| {
        "this is an HTML page, such as a login or an error, not the file: accept the model's terms on its page, \
         log in with `hf auth login`, and download the file again with `hf download`"
            .to_owned()
    })
}

/// What a file is that should be a safetensors file, where that can be said.
pub(super) fn no_tensors(bytes: &[u8]) -> Option<String> {
    if let Some(failed) = failed_download(bytes) {
        return Some(failed);
    }
    if bytes.starts_with(b"GGUF") {
        return Some(
            "this is a GGUF file, whose weights are quantised as a rule: download the model's safetensors files in \
             bf16, f16 or f32"
                .to_owned(),
        );
    }
    // A zip archive, as torch saves since 1.6, and a bare pickle of protocol 2 or later.
    if bytes.starts_with(b"PK\x03\x04") || matches!(bytes, [0x80, 2..=5, ..]) {
        return Some(
            "this is a pickle of PyTorch under another name, and pickles are not read, since they can run code: \
             download the model's safetensors files"
                .to_owned(),
        );
    }
    let first = answer(bytes)?;
    Some(format!(
        "this is text, not tensors: it begins {first:?}; download the file again"
    ))
}

/// What git leaves in place of a large file that it did not fetch.
fn pointer(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(ANSWER_BYTES_MAX)]).into_owned();
    let size = text.lines().find_map(|line| line.strip_prefix("size "));
    let size = size.map_or(String::new(), |size| format!(" to {} bytes", size.trim()));
    format!(
        "this is a git-LFS pointer{size}, not the file itself: run `git lfs pull` in its repository, or download the \
         model with `hf download`"
    )
}

/// Whether the bytes are what git-LFS has in place of a file.
pub(crate) fn is_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// Whether the bytes begin as an HTML page does.
pub(crate) fn is_html(bytes: &[u8]) -> bool {
    begins(bytes, b"<!doctype html") || begins(bytes, b"<html")
}

/// Whether the bytes begin as an HTML or XML document does.
fn is_page(bytes: &[u8]) -> bool {
    is_html(bytes) || begins(bytes, b"<?xml")
}

/// Whether a document begins so, in letters of any case, behind a byte order mark and blanks.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let found = bytes.trim_ascii_start().get(..start.len());
    found.is_some_and(|found| found.eq_ignore_ascii_case(start))
}

/// The first line of a short text, such as a server's `Access to model ... is restricted`.
fn answer(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > ANSWER_BYTES_MAX {
        return None;
    }
    let text = std::str::from_utf8(bytes).ok()?.trim();
    let is_text = |c: char| !c.is_control() || c.is_ascii_whitespace();
    let line = text.lines().next().filter(|_| text.chars().all(is_text))?;
    let end = line.floor_char_boundary(QUOTED_BYTES_MAX);
    Some(&line[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTER: &[u8] =
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 23802816640\n";

    #[test]
    fn what_a_failed_download_leaves_is_named_with_the_way_out() {
        let said = |bytes: &[u8]| failed_download(bytes).expect("no file as meant");
        assert!(said(b"").contains("empty"));
        let pointer = said(POINTER);
        assert!(
            pointer.contains("git-LFS pointer to 23802816640 bytes")
                && pointer.contains("git lfs pull"),
            "{pointer}"
        );
        for page in [
            &b"<!DOCTYPE html>\n<html>"[..],
            b"\xef\xbb\xbf \n<HTML lang=en>",
            b"<?xml version='1.0'?><Error>",
        ] {
            assert!(said(page).contains("hf auth login"));
        }
        for sound in [&b"{}"[..], b"[1]", b"#version: 0.2\na b\n", b"<pad>"] {
            assert_eq!(failed_download(sound), None);
        }
    }

    #[test]
    fn weights_of_other_formats_are_named() {
        let said = |bytes: &[u8]| no_tensors(bytes).expect("no tensors");
        assert!(said(b"GGUF\x03\0\0\0").contains("GGUF"));
        assert!(said(b"PK\x03\x04\0\0").contains("pickle"));
        assert!(said(b"\x80\x02}q").contains("pickle"));
        let answer = said("Access to model black-forest-labs/X is restricted.\nmore".as_bytes());
        assert!(
            answer.contains("it begins \"Access to model black-forest-labs/X is restricted.\""),
            "{answer}"
        );
        let long = said("é".repeat(200).as_bytes());
        assert!(long.contains(&format!("{:?};", "é".repeat(60))), "{long}");
        assert_eq!(no_tensors(b"\x10\0\0\0\0\0\0\0{}"), None);
    }
}
