//! Image files of unknown origin: the header is judged before anything is allocated for the pixels.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Seek},
    path::Path,
};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

/// Longest file that is read.
pub const FILE_BYTES_MAX: u64 = 128 << 20;
/// Most pixels of an image: 8192 x 8192.
pub const PIXELS_MAX: u64 = 1 << 26;
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
    /// The content is broken or of an unknown kind.
    #[error("it is broken or of an unknown kind: {0}")]
    Decode(#[from] image::ImageError),
}

/// Reads an image file of a kind that its first bytes tell.
///
/// # Errors
/// If it can't be opened, is too large, or is no image.
pub fn open(path: &Path) -> Result<RgbImage, ImageFileError> {
    let file = File::open(path)?;
    check_length(file.metadata()?.len())?;
    let reader = ImageReader::new(BufReader::new(file)).with_guessed_format()?;
    decode(reader)
}

/// Reads a PNG image from memory.
///
/// # Errors
/// If it is too large or no PNG image.
pub fn from_png(bytes: &[u8]) -> Result<RgbImage, ImageFileError> {
    check_length(bytes.len() as u64)?;
    decode(ImageReader::with_format(
        Cursor::new(bytes),
        ImageFormat::Png,
    ))
}

fn check_length(bytes: u64) -> Result<(), ImageFileError> {
    if bytes > FILE_BYTES_MAX {
        return Err(ImageFileError::TooLong { bytes });
    }
    Ok(())
}

fn decode(mut reader: ImageReader<impl BufRead + Seek>) -> Result<RgbImage, ImageFileError> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(DECODE_BYTES_MAX);
    reader.limits(limits);
    let decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(ImageFileError::TooLarge { width, height });
    }
    Ok(DynamicImage::from_decoder(decoder)?.to_rgb8())
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
        std::fs::write(&file, png(3, 2)).unwrap();
        let read = open(&file).unwrap();
        assert_eq!((read.dimensions(), read[(2, 1)].0), ((3, 2), [9, 8, 7]));
        assert_eq!(from_png(&png(3, 2)).unwrap(), read);
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
    fn cut_and_foreign_files_are_errors() {
        let whole = png(16, 16);
        for bytes in [&whole[..whole.len() / 2], b"GIF89a", b"", &whole[8..]] {
            assert!(matches!(from_png(bytes), Err(ImageFileError::Decode(_))));
        }
    }
}
