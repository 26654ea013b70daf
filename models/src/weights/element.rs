//! Element types of files, and values from one to another.

use burn::tensor::{Bytes, DType};
use half::{bf16, f16};
use safetensors::tensor::Dtype;

/// Burn's name of a file's element type, if models are stored in it.
pub(super) fn element_type(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::U8 => DType::U8,
        _ => return None,
    })
}

/// The little-endian values of a file in another type; `None` for pairs of types that no model needs.
pub(super) fn convert(bytes: &[u8], from: DType, to: DType) -> Option<Bytes> {
    let narrow = |of: fn([u8; 2]) -> f32| wide_or_narrow(bytes, of, to);
    match (from, to) {
        (from, to) if from == to => Some(Bytes::from_bytes_vec(bytes.to_vec())),
        (DType::BF16, _) => narrow(|b| bf16::from_le_bytes(b).to_f32()),
        (DType::F16, _) => narrow(|b| f16::from_le_bytes(b).to_f32()),
        (DType::F32, _) => wide_or_narrow(bytes, f32::from_le_bytes, to),
        _ => None,
    }
}

fn wide_or_narrow<const N: usize>(
    bytes: &[u8],
    value: fn([u8; N]) -> f32,
    to: DType,
) -> Option<Bytes> {
    let (elements, _) = bytes.as_chunks::<N>();
    let values = elements.iter().map(|element| value(*element));
    Some(match to {
        DType::F32 => Bytes::from_elems(values.collect::<Vec<f32>>()),
        DType::BF16 => Bytes::from_elems(values.map(bf16::from_f32).collect::<Vec<_>>()),
        DType::F16 => Bytes::from_elems(values.map(f16::from_f32).collect::<Vec<_>>()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    #[test]
    fn every_pair_of_float_types_converts_as_burn_does() {
        let types = [DType::F32, DType::BF16, DType::F16];
        let values = [0.0f32, -1.5, 3.2519531, 6.5e4, -1e-6];
        for from in types {
            let stored = TensorData::new(values.to_vec(), [5]).convert_dtype(from);
            for to in types {
                let ours = convert(stored.as_bytes(), from, to).unwrap();
                let expected = stored.clone().convert_dtype(to);
                assert_eq!(&ours[..], expected.as_bytes(), "{from:?} to {to:?}");
            }
        }
        assert!(convert(&[0; 8], DType::I64, DType::F32).is_none());
    }
}
