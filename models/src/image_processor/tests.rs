use super::*;
use crate::golden::Case;
use burn::tensor::{Device, Tensor, TensorData};

fn processor(patch_size: usize, min_pixels: usize, max_pixels: usize) -> ImageProcessor {
    ImageProcessor::new(ImageProcessorConfig {
        patch_size,
        temporal_patch_size: 2,
        merge_size: 2,
        min_pixels,
        max_pixels,
        image_mean: [0.5; 3],
        image_std: [0.5; 3],
    })
}

#[test]
fn patches_equal_the_reference() {
    for case in Case::all("image_processor") {
        let config = read_config(&case.path("config.json")).unwrap();
        let processor = ImageProcessor::new(config);
        let shape = case.shape("in.image");
        let samples = case
            .integers("in.image")
            .iter()
            .map(|sample| *sample as u8)
            .collect();
        let image = RgbImage::from_raw(shape[1] as u32, shape[0] as u32, samples).unwrap();
        let patches = processor.patches(&image).unwrap();
        let grid = patches.grid;
        let found = [grid.frames, grid.height, grid.width].map(|side| side as i64);
        assert_eq!(case.integers("out.image_grid_thw"), found);
        let shape = [grid.patches(), processor.patch_features()];
        let data = TensorData::new(patches.values, shape);
        // Torchvision's resampling is followed bit for bit; Pillow's differs by at most one level.
        let pillow = case.path("").to_string_lossy().contains("by_pil");
        let tolerance = if pillow { 0.015 } else { 1e-6 };
        let found = Tensor::<2>::from_data(data, &Device::flex());
        case.check("out.pixel_values", found, tolerance);
    }
}

#[test]
fn sides_become_whole_tokens_within_the_limits() {
    let processor = processor(8, 16 * 16, 64 * 64);
    assert_eq!(processor.target_size(64, 64), [64, 64]);
    assert_eq!(processor.target_size(40, 56), [32, 64]);
    assert_eq!(processor.target_size(128, 128), [64, 64]);
    assert_eq!(processor.target_size(4, 4), [16, 16]);
    assert_eq!(processor.target_size(1000, 8), [192, 16]);
}

#[test]
fn images_that_make_no_sense_are_refused_with_their_size() {
    let processor = processor(8, 16 * 16, 64 * 64);
    let empty = processor.patches(&RgbImage::new(0, 5)).unwrap_err();
    assert!(matches!(
        empty,
        ImageError::Empty {
            width: 0,
            height: 5
        }
    ));
    let narrow = processor.patches(&RgbImage::new(201, 1)).unwrap_err();
    assert!(narrow.to_string().contains("201 x 1"), "{narrow}");
}

#[test]
fn a_constant_image_stays_constant_whatever_its_size() {
    let image = RgbImage::from_pixel(37, 21, image::Rgb([200, 7, 255]));
    for filter in [Filter::Bicubic, Filter::Lanczos] {
        for arithmetic in [Arithmetic::Pillow, Arithmetic::Torchvision] {
            let resized = resize(&image, [64, 16], filter, arithmetic);
            assert_eq!(resized.dimensions(), (16, 64));
            assert!(resized.pixels().all(|pixel| pixel.0 == [200, 7, 255]));
        }
    }
}

#[test]
fn the_configuration_is_read_from_either_file() {
    let folder = tempfile::tempdir().unwrap();
    let saved = processor(4, 64, 640);
    saved.save(folder.path()).unwrap();
    let own = std::fs::read_to_string(folder.path().join(CONFIG_FILE)).unwrap();
    std::fs::remove_file(folder.path().join(CONFIG_FILE)).unwrap();
    let missing = ImageProcessor::load(folder.path()).unwrap_err().to_string();
    assert!(missing.contains(CONFIG_FILE), "{missing}");
    let joint =
        format!(r#"{{"image_processor": {own}, "processor_class": "Qwen2_5_VLProcessor"}}"#);
    std::fs::write(folder.path().join(JOINT_CONFIG_FILE), joint).unwrap();
    let loaded = ImageProcessor::load(folder.path()).unwrap();
    assert_eq!(loaded.config(), saved.config());
}
