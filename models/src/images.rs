//! Image files of unknown origin, as viewers show them: turned as their EXIF data says, over white where they are
//! transparent. The header is judged before anything is allocated for the pixels.

use std::{
    fs::File,
    io::{self, Cursor, Read},
    path::Path,
};

use image::{
    DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage, metadata::Orientation,
};

use crate::weights::foreign::{is_html, is_pointer};

/// Longest file that is read.
pub const FILE_BYTES_MAX: u64 = 128 << 20;
/// Most pixels of an image: 8192 x 8192.
pub const PIXELS_MAX: u64 = 1 << 26;
/// Shortest side of an image: a token of every published editor.
pub const SIDE_MIN: u32 = 16;
/// Longest side over the shortest. Judges take up to 200, also of sizes that follow from the image's and are rounded.
pub const ASPECT_MAX: u32 = 50;
/// Memory that decoding may take: 16-bit RGBA of all pixels, and the same again for the decoder.
const DECODE_BYTES_MAX: u64 = 16 * PIXELS_MAX;

/// An image that is not read.
#[derive(Debug, thiserror::Error)]
pub enum ImageFileError {
    /// The file can't be opened or read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The file is too long.
    #[error("it has {bytes} bytes, at most {FILE_BYTES_MAX} are read")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// The header announces too many pixels.
    #[error("it has {width} x {height} pixels, at most {PIXELS_MAX} are decoded")]
    TooLarge {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
    },
    /// It is too narrow to be edited.
    #[error(
        "it has {width} x {height} pixels; images have at least {SIDE_MIN} on each side, and on one at most \
         {ASPECT_MAX} times as many as on the other"
    )]
    TooNarrow {
        /// Its width.
        width: u32,
        /// Its height.
        height: u32,
    },
    /// It is something else than an image of a kind that is read.
    #[error("it is {0}; PNG, JPEG and WebP images are read")]
    Foreign(&'static str),
    /// The rest of the file is missing.
    #[error("it is cut off: the {0} file has no end")]
    CutOff(&'static str),
    /// The content is broken or of an unknown kind.
    #[error("it is broken or of an unknown kind: {0}")]
    Decode(#[from] image::ImageError),
}

/// Reads an image file of a kind that its first bytes tell.
///
/// The pixels are those that viewers and the reference pipelines (`diffusers.utils.load_image`) show: EXIF orientation
/// is applied. Transparent pixels have white behind them, where the reference keeps the colour that they hide.
///
/// # Errors
/// If it can't be opened, is too large, too small or too narrow, or is no whole image.
pub fn open(path: &Path) -> Result<RgbImage, ImageFileError> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    check_length(length)?;
    let mut bytes = Vec::with_capacity(length as usize);
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    from_bytes(&bytes)
}

/// As [`open`], of a file's bytes.
///
/// # Errors
/// As [`open`].
pub fn from_bytes(bytes: &[u8]) -> Result<RgbImage, ImageFileError> {
    check_length(bytes.len() as u64)?;
    let image = decode(bytes, format(bytes)?)?;
    check_sides(image.width(), image.height())?;
    Ok(image)
}

fn check_sides(width: u32, height: u32) -> Result<(), ImageFileError> {
    let (short, long) = (width.min(height), width.max(height));
    if short < SIDE_MIN || long > ASPECT_MAX * short {
        return Err(ImageFileError::TooNarrow { width, height });
    }
    Ok(())
}

/// Reads a PNG image from memory.
///
/// # Errors
/// If it is too large or no PNG image.
pub fn from_png(bytes: &[u8]) -> Result<RgbImage, ImageFileError> {
    check_length(bytes.len() as u64)?;
    decode(bytes, ImageFormat::Png)
}

fn check_length(bytes: u64) -> Result<(), ImageFileError> {
    if bytes > FILE_BYTES_MAX {
        return Err(ImageFileError::TooLong { bytes });
    }
    Ok(())
}

/// Other kinds of images, by how they begin. HEIC and AVIF have their names after the length of their first box.
const OTHER_KINDS: [(usize, &[u8], &str); 7] = [
    (0, b"GIF8", "a GIF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF or a camera's raw file"),
    (0, b"MM\0*", "a TIFF or a camera's raw file"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftyphei", "a HEIC photograph"),
    (4, b"ftypmif1", "a HEIC photograph"),
];

fn format(bytes: &[u8]) -> Result<ImageFormat, ImageFileError> {
    match foreign(bytes) {
        Some(what) => Err(ImageFileError::Foreign(what)),
        None => Ok(image::guess_format(bytes)?),
    }
}

/// What a file is that lies in a folder of images and is none that is read, where that can be said.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    if bytes.is_empty() {
        return Some("empty");
    }
    if is_pointer(bytes) {
        return Some("a git-lfs pointer: `git lfs pull` gets the file itself");
    }
    if is_html(bytes) {
        return Some("a web page");
    }
    let begins =
        |at: usize, begin: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(begin));
    let kind = OTHER_KINDS.iter().find(|(at, begin, _)| begins(*at, begin));
    kind.map(|(.., what)| *what)
}

fn decode(bytes: &[u8], format: ImageFormat) -> Result<RgbImage, ImageFileError> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(DECODE_BYTES_MAX);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(ImageFileError::TooLarge { width, height });
    }
    // The decoder gives grey where the rest of a JPEG is missing, and errors for the other kinds.
    if format == ImageFormat::Jpeg && !has_end_of_image(bytes) {
        return Err(ImageFileError::CutOff("JPEG"));
    }
    // Orientation is a hint: where it can't be read, viewers show the picture as it is stored.
    let exif = decoder.exif_metadata().ok().flatten();
    let exif = exif.or_else(|| exif_of_png(bytes).map(<[u8]>::to_vec));
    let mut image = DynamicImage::from_decoder(decoder)?;
    if let Some(orientation) = exif.and_then(|exif| orientation(&exif)) {
        image.apply_orientation(orientation);
    }
    Ok(over_white(image))
}

fn orientation(exif: &[u8]) -> Option<Orientation> {
    // Some writers of WebP keep the head that only JPEG's segments have.
    Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))
}

/// The `eXIf` chunk of a PNG: the decoder misses those that come after the pixels.
fn exif_of_png(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    loop {
        let (length, after) = rest.split_first_chunk()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let (data, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        if kind == b"eXIf" {
            return Some(data);
        }
        rest = after.get(4..)?;
    }
}

/// The picture with white behind what is transparent.
fn over_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let image = image.into_rgba8();
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let [colour @ .., alpha] = image.get_pixel(x, y).0;
        let alpha = u32::from(alpha);
        let over = |value: u8| (u32::from(value) * alpha + 255 * (255 - alpha) + 127) / 255;
        image::Rgb(colour.map(|value| over(value) as u8))
    })
}

/// Whether a JPEG's last marker is there: the segments are followed, since a thumbnail among them has one of its own.
fn has_end_of_image(jpeg: &[u8]) -> bool {
    const END_OF_IMAGE: u8 = 0xd9;
    let mut rest = jpeg.get(2..).unwrap_or_default();
    while let Some((marker, after)) = next_marker(rest) {
        rest = match marker {
            END_OF_IMAGE => return true,
            // Escaped data, restarts and TEM are no segments.
            0 | 1 | 0xd0..=0xd7 => after,
            _ => {
                let length = after
                    .first_chunk()
                    .map(|length| u16::from_be_bytes(*length));
                after
                    .get(usize::from(length.unwrap_or(0))..)
                    .unwrap_or_default()
            }
        };
    }
    false
}

/// The next marker's code, and what follows it.
fn next_marker(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let at = bytes
        .windows(2)
        .position(|pair| pair[0] == 0xff && pair[1] != 0xff)?;
    Some((bytes[at + 1], &bytes[at + 2..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        let image = RgbImage::from_pixel(width, height, image::Rgb([9, 8, 7]));
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    /// The same image, but with a header that announces other sides.
    fn announcing(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = png(2, 2);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1))
            })
        })
    }

    #[test]
    fn an_image_is_read_from_file_and_memory() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("without-an-extension");
        std::fs::write(&file, png(30, 20)).unwrap();
        let read = open(&file).unwrap();
        let corner = read[(29, 19)].0;
        assert_eq!((read.dimensions(), corner), ((30, 20), [9, 8, 7]));
        assert_eq!(from_png(&png(30, 20)).unwrap(), read);
        // What the tests below change by hand is otherwise a good image.
        assert_eq!(from_png(&announcing(2, 2)).unwrap().dimensions(), (2, 2));
    }

    #[test]
    fn bombs_are_refused_by_their_header() {
        for (width, height) in [(1 << 14, 1 << 14), (1 << 30, 1), (u32::MAX >> 1, 1 << 20)] {
            let begin = std::time::Instant::now();
            let error = from_png(&announcing(width, height)).unwrap_err();
            let refused = matches!(
                error,
                ImageFileError::TooLarge { .. }
                    | ImageFileError::Decode(image::ImageError::Limits(_))
            );
            assert!(refused, "{width} x {height}: {error}");
            assert!(begin.elapsed().as_millis() < 500, "{width} x {height}");
        }
        let error = from_png(&announcing(8193, 8192)).unwrap_err().to_string();
        assert!(error.contains("8193 x 8192"), "{error}");
    }

    #[test]
    fn long_files_are_refused_unread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.png");
        let file = File::create(&path).unwrap();
        file.set_len(FILE_BYTES_MAX + 1).unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("134217729 bytes"), "{error}");
    }

    #[test]
    fn broken_files_are_errors() {
        let whole = png(16, 16);
        for bytes in [&whole[..whole.len() / 2], b"GIF89a", b"", &whole[8..]] {
            assert!(matches!(from_png(bytes), Err(ImageFileError::Decode(_))));
        }
    }

    /// What [`open`] makes of a file of these bytes.
    fn opened(bytes: &[u8]) -> Result<RgbImage, ImageFileError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        open(&path)
    }

    const FORMATS: [ImageFormat; 3] = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];

    /// Four blocks of different grey, so that every orientation shows and JPEG loses nothing that matters.
    fn blocks() -> RgbImage {
        let grey = |x, y| [[0, 90], [170, 250]][usize::from(y >= 16)][usize::from(x >= 8)];
        RgbImage::from_fn(16, 32, |x, y| image::Rgb([grey(x, y); 3]))
    }

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// TIFF with one field, the orientation.
    fn exif(orientation: u8) -> Vec<u8> {
        let mut exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        exif
    }

    /// The chunk with its length and checksum.
    fn png_chunk(kind: &[u8], data: &[u8]) -> Vec<u8> {
        let body = [kind, data].concat();
        let length = (data.len() as u32).to_be_bytes();
        [&length[..], &body, &crc32(&body).to_be_bytes()].concat()
    }

    fn spliced(bytes: &[u8], at: usize, more: &[u8]) -> Vec<u8> {
        [&bytes[..at], more, &bytes[at..]].concat()
    }

    /// The same files with an orientation in every place where writers put it.
    fn oriented(orientation: u8) -> Vec<Vec<u8>> {
        let [png, jpeg, webp] = FORMATS.map(|format| encoded(&blocks().into(), format));
        let exif = exif(orientation);
        let chunk = png_chunk(b"eXIf", &exif);
        let head = [b"Exif\0\0", &exif[..]].concat();
        let length = (head.len() as u16 + 2).to_be_bytes();
        let segment = [b"\xff\xe1", &length[..], &head].concat();
        let mut files = vec![
            spliced(&png, 33, &chunk),
            spliced(&png, png.len() - 12, &chunk),
            spliced(&jpeg, 2, &segment),
        ];
        for exif in [exif, head] {
            let flags_and_size = [0x08, 0, 0, 0, 15, 0, 0, 31, 0, 0];
            let riff = |kind: &[u8], data: &[u8]| {
                let length = (data.len() as u32).to_le_bytes();
                [kind, &length[..], data].concat()
            };
            let body = [
                b"WEBP".to_vec(),
                riff(b"VP8X", &flags_and_size),
                webp[12..].to_vec(),
            ];
            files.push(riff(
                b"RIFF",
                &[body.concat(), riff(b"EXIF", &exif)].concat(),
            ));
        }
        files
    }

    #[test]
    fn pictures_are_turned_as_their_exif_says() {
        let stored = DynamicImage::from(blocks());
        let shown = [
            stored.clone(),
            stored.fliph(),
            stored.rotate180(),
            stored.flipv(),
            stored.rotate90().fliph(),
            stored.rotate90(),
            stored.rotate270().fliph(),
            stored.rotate270(),
        ];
        for (orientation, shown) in (1..).zip(shown) {
            let shown = shown.into_rgb8();
            for (place, file) in oriented(orientation).into_iter().enumerate() {
                let read = opened(&file).unwrap();
                assert_eq!(
                    read.dimensions(),
                    shown.dimensions(),
                    "{orientation} {place}"
                );
                let farthest = read
                    .iter()
                    .zip(shown.iter())
                    .map(|(a, b)| a.abs_diff(*b))
                    .max();
                assert!(farthest < Some(12), "{orientation} {place}: {farthest:?}");
            }
        }
        // What is no orientation turns nothing.
        for orientation in [0, 9, 255] {
            for file in oriented(orientation) {
                assert_eq!(opened(&file).unwrap().dimensions(), (16, 32));
            }
        }
    }

    #[test]
    fn white_is_behind_what_is_transparent() {
        let colours = [[255, 0, 255, 0], [255, 0, 255, 255], [0, 100, 200, 51]];
        let image = image::RgbaImage::from_fn(18, 16, |x, _| image::Rgba(colours[x as usize % 3]));
        let grey = image::GrayAlphaImage::from_pixel(16, 16, image::LumaA([7, 0]));
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let read = opened(&encoded(&image.clone().into(), format)).unwrap();
            let expected = [[255, 255, 255], [255, 0, 255], [204, 224, 244]];
            let expected = expected.into_iter().cycle().take(18 * 16);
            let equal = read.pixels().map(|pixel| pixel.0).eq(expected);
            assert!(equal, "{format:?}");
        }
        let deep = DynamicImage::from(image).into_rgba16();
        let read = opened(&encoded(&deep.into(), ImageFormat::Png)).unwrap();
        assert_eq!(read[(0, 0)].0, [255; 3]);
        let read = opened(&encoded(&grey.into(), ImageFormat::Png)).unwrap();
        assert_eq!(read[(0, 0)].0, [255; 3]);
    }

    #[test]
    fn cut_files_are_refused_wherever_they_are_cut() {
        let noise = crate::noise::normal_values(1, 64 * 64);
        let noise = RgbImage::from_fn(64, 64, |x, y| {
            let value = noise[(y * 64 + x) as usize];
            image::Rgb([(128.0 + 40.0 * value) as u8, x as u8, y as u8])
        });
        for format in FORMATS {
            let whole = encoded(&noise.clone().into(), format);
            opened(&whole).unwrap();
            // The last twelve bytes of a PNG say only that nothing follows.
            for length in (0..whole.len() - 16).step_by(97).chain([whole.len() - 16]) {
                let cut = opened(&whole[..length]);
                assert!(
                    cut.is_err(),
                    "{format:?}: {length} of {} bytes",
                    whole.len()
                );
            }
        }
        // The end of a thumbnail is not that of the picture.
        let jpeg = encoded(&noise.into(), ImageFormat::Jpeg);
        let thumbnail = b"\xff\xe1\0\x08\xff\xd8\xff\xd9\0\0";
        let jpeg = spliced(&jpeg, 2, thumbnail);
        opened(&jpeg).unwrap();
        let error = opened(&jpeg[..jpeg.len() - 300]).unwrap_err().to_string();
        assert_eq!(error, "it is cut off: the JPEG file has no end");
    }

    #[test]
    fn pictures_that_no_editor_takes_are_refused_by_their_sides() {
        for (width, height) in [(1, 1), (2000, 2), (16, 15), (15, 64), (801, 16), (16, 801)] {
            let error = opened(&png(width, height)).unwrap_err().to_string();
            let expected = format!("it has {width} x {height} pixels; images have at least 16");
            assert!(error.starts_with(&expected), "{error}");
        }
        for (width, height) in [(16, 16), (800, 16), (16, 800)] {
            assert_eq!(
                opened(&png(width, height)).unwrap().dimensions(),
                (width, height)
            );
        }
    }

    #[test]
    fn other_kinds_of_files_are_named() {
        for (bytes, what) in [
            (&b""[..], "it is empty"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid",
                "git lfs pull",
            ),
            (b"<!DOCTYPE html><html>", "a web page"),
            (b"GIF89a\0\0", "a GIF"),
            (b"\0\0\0\x18ftypheic", "a HEIC photograph"),
            (b"\0\0\0\x18ftypavif", "an AVIF"),
            (b"plain text", "unknown kind"),
        ] {
            let error = opened(bytes).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn hostile_files_are_refused_or_read() {
        for file in oriented(6) {
            retouch_hostile::bombard(&file, |bytes| {
                if let Ok(image) = format(bytes).and_then(|format| decode(bytes, format)) {
                    assert!(u64::from(image.width()) * u64::from(image.height()) <= PIXELS_MAX);
                }
            });
        }
    }
}
