use burn::tensor::{Device, Tensor, TensorData};
use image::{RgbImage, imageops};

use super::ImageSize;
use crate::image_processor::{Arithmetic, Filter, resize};

/// Crops the middle of an image to the aspect of `size`, and resizes it to `size` as PIL's
/// Lanczos filter does.
pub fn fit(image: &RgbImage, size: ImageSize) -> RgbImage {
    let (width, height) = (image.width() as f64, image.height() as f64);
    let scale = (width / size.width as f64).min(height / size.height as f64);
    let side = |target: usize, limit: f64| (target as f64 * scale).round().clamp(1.0, limit) as u32;
    let (crop_width, crop_height) = (side(size.width, width), side(size.height, height));
    let left = (image.width() - crop_width) / 2;
    let top = (image.height() - crop_height) / 2;
    let cropped = imageops::crop_imm(image, left, top, crop_width, crop_height).to_image();
    lanczos(&cropped, size)
}

pub(super) fn lanczos(image: &RgbImage, size: ImageSize) -> RgbImage {
    resize(
        image,
        [size.height, size.width],
        Filter::Lanczos,
        Arithmetic::Pillow,
    )
}

/// # Shapes
/// * output in -1..1: `[1, 3, H, W]`
pub(super) fn to_tensor(image: &RgbImage, device: &Device) -> Tensor<4> {
    let ImageSize { height, width } = ImageSize::of(image);
    let values: Vec<f32> = image
        .as_raw()
        .iter()
        .map(|byte| f32::from(*byte) / 255.0 * 2.0 - 1.0)
        .collect();
    let pixels = Tensor::<4>::from_data(TensorData::new(values, [1, height, width, 3]), device);
    pixels.permute([0, 3, 1, 2])
}

/// # Shapes
/// * pixels in 0..1: `[B, 3, H, W]`
pub(super) fn to_images(pixels: Tensor<4>) -> Vec<RgbImage> {
    let [_, _, height, width] = pixels.dims();
    let values = pixels.permute([0, 2, 3, 1]).into_data().convert::<f32>();
    let values = values.as_slice::<f32>().expect("just converted");
    let byte = |value: &f32| (value * 255.0).round_ties_even() as u8;
    let bytes: Vec<u8> = values.iter().map(byte).collect();
    let image = |raw: &[u8]| RgbImage::from_raw(width as u32, height as u32, raw.to_vec());
    let images = bytes.chunks(3 * height * width).map(image);
    images
        .map(|image| image.expect("as many bytes as pixels"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([x as u8, y as u8, (x + y) as u8])
        })
    }

    #[test]
    fn pixels_survive_the_way_through_a_tensor() {
        let image = gradient(7, 5);
        let tensor = to_tensor(&image, &Device::flex());
        assert_eq!(tensor.dims(), [1, 3, 5, 7]);
        assert_eq!(to_images(tensor / 2.0 + 0.5), [image]);
    }

    #[test]
    fn fitting_crops_the_middle_and_leaves_the_right_size_alone() {
        let image = gradient(100, 60);
        assert_eq!(fit(&image, ImageSize::of(&image)), image);
        let square = fit(&image, ImageSize::square(60));
        assert_eq!((square.width(), square.height()), (60, 60));
        assert_eq!(square.get_pixel(0, 7), image.get_pixel(20, 7));
        let tall = fit(
            &image,
            ImageSize {
                height: 120,
                width: 40,
            },
        );
        assert_eq!((tall.width(), tall.height()), (40, 120));
    }
}
