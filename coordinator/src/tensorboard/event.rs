//! The messages of TensorBoard's file, and the records that they stand in.
//!
//! A record is its length, that length's checksum, an `Event` message and its checksum. Of the messages only what is
//! needed is written, by hand. `Event`: `wall_time = 1` (double), `step = 2`, `file_version = 3`, `summary = 5`,
//! `session_log = 7` with `status = 1`. A summary is of values, each with `tag = 1` and one of `simple_value = 2` (float),
//! `image = 4` (`height = 1`, `width = 2`, `colorspace = 3`, `encoded_image_string = 4`) and `tensor = 8` (`dtype = 1`,
//! `tensor_shape = 2`, `float_val = 5`, `string_val = 8`), the last with `metadata = 9`, where `plugin_data = 1` names the
//! plugin that shows it (`plugin_name = 1`) and what that wants to know (`content = 2`).

const VERSION: &str = "brain.Event:2";
/// `SessionLog.START`.
const SESSION_START: u64 = 1;
/// Three channels.
const RGB: u64 = 3;
/// `DT_FLOAT` and `DT_STRING`.
const FLOAT: u64 = 1;
const STRING: u64 = 7;
/// CRC-32C (Castagnoli), reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const MASK_DELTA: u32 = 0xa282_ead8;

/// A picture for TensorBoard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Its name there, as `heldout/pairs`.
    pub tag: String,
    /// The iteration.
    pub step: u32,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// The encoded picture.
    pub png: Vec<u8>,
}

/// A setting of a run, for the plugin that compares runs by them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Setting {
    /// A number.
    Number(f64),
    /// Any other value.
    Text(String),
    /// A switch.
    Switch(bool),
}

/// One event's message.
pub(super) struct Event(Vec<u8>);

impl Event {
    fn at(now_ms: u64) -> Self {
        let mut event = vec![1 << 3 | 1];
        event.extend((now_ms as f64 / 1e3).to_le_bytes());
        Self(event)
    }

    /// What every file begins with.
    pub(super) fn version(now_ms: u64) -> Self {
        let mut event = Self::at(now_ms);
        text_field(&mut event.0, 3, VERSION);
        event
    }

    /// At step 0, which needs no field: every step that was read before is dropped.
    pub(super) fn session_start(now_ms: u64) -> Self {
        let (mut event, mut session) = (Self::at(now_ms), Vec::new());
        number_field(&mut session, 1, SESSION_START);
        bytes_field(&mut event.0, 7, &session);
        event
    }

    /// Numbers of one step, by tag.
    pub(super) fn scalars(step: u32, scalars: &[(String, f64)], now_ms: u64) -> Self {
        let values = scalars.iter().map(|(tag, value)| {
            let mut scalar = tagged(tag);
            scalar.push(2 << 3 | 5);
            scalar.extend((*value as f32).to_le_bytes());
            scalar
        });
        Self::summary(step, values, now_ms)
    }

    /// A picture.
    pub(super) fn picture(picture: &Picture, now_ms: u64) -> Self {
        let (mut value, mut image) = (tagged(&picture.tag), Vec::new());
        number_field(&mut image, 1, picture.size.1.into());
        number_field(&mut image, 2, picture.size.0.into());
        number_field(&mut image, 3, RGB);
        bytes_field(&mut image, 4, &picture.png);
        bytes_field(&mut value, 4, &image);
        Self::summary(picture.step, [value], now_ms)
    }

    /// A text in Markdown, at step 0.
    pub(super) fn text(tag: &str, markdown: &str, now_ms: u64) -> Self {
        let (mut value, mut tensor) = (tagged(tag), one_of(STRING));
        bytes_field(&mut tensor, 8, markdown.as_bytes());
        bytes_field(&mut value, 8, &tensor);
        bytes_field(&mut value, 9, &plugin("text", &[]));
        Self::summary(0, [value], now_ms)
    }

    /// The settings of a run, for the plugin `hparams`: a `SessionStartInfo` (field 3 of its data), which is a map
    /// (`hparams = 1`) to `google.protobuf.Value`.
    pub(super) fn settings(settings: &[(String, Setting)], now_ms: u64) -> Self {
        let mut info = Vec::new();
        for (key, setting) in settings {
            let (mut entry, mut value) = (tagged(key), Vec::new());
            match setting {
                Setting::Number(number) => {
                    value.push(2 << 3 | 1);
                    value.extend(number.to_le_bytes());
                }
                Setting::Text(text) => text_field(&mut value, 3, text),
                Setting::Switch(is_on) => number_field(&mut value, 4, (*is_on).into()),
            }
            bytes_field(&mut entry, 2, &value);
            bytes_field(&mut info, 1, &entry);
        }
        let mut content = Vec::new();
        bytes_field(&mut content, 3, &info);
        let mut value = tagged("_hparams_/session_start_info");
        // The plugin reads the content alone, but takes no value without a tensor.
        let mut tensor = one_of(FLOAT);
        bytes_field(&mut tensor, 5, &0_f32.to_le_bytes());
        bytes_field(&mut value, 8, &tensor);
        bytes_field(&mut value, 9, &plugin("hparams", &content));
        Self::summary(0, [value], now_ms)
    }

    fn summary(step: u32, values: impl IntoIterator<Item = Vec<u8>>, now_ms: u64) -> Self {
        let (mut event, mut summary) = (Self::at(now_ms), Vec::new());
        for value in values {
            bytes_field(&mut summary, 1, &value);
        }
        number_field(&mut event.0, 2, step.into());
        bytes_field(&mut event.0, 5, &summary);
        event
    }

    /// As it stands in a file.
    pub(super) fn record(&self) -> Vec<u8> {
        let length = (self.0.len() as u64).to_le_bytes();
        [
            &length[..],
            &masked_checksum(&length).to_le_bytes(),
            &self.0,
            &masked_checksum(&self.0).to_le_bytes(),
        ]
        .concat()
    }
}

/// A message whose field 1 is a name.
fn tagged(tag: &str) -> Vec<u8> {
    let mut message = Vec::new();
    text_field(&mut message, 1, tag);
    message
}

/// A tensor of shape `[1]` without its value.
fn one_of(dtype: u64) -> Vec<u8> {
    let (mut tensor, mut shape, mut dim) = (Vec::new(), Vec::new(), Vec::new());
    number_field(&mut tensor, 1, dtype);
    number_field(&mut dim, 1, 1);
    bytes_field(&mut shape, 2, &dim);
    bytes_field(&mut tensor, 2, &shape);
    tensor
}

fn plugin(name: &str, content: &[u8]) -> Vec<u8> {
    let (mut metadata, mut data) = (Vec::new(), Vec::new());
    text_field(&mut data, 1, name);
    if !content.is_empty() {
        bytes_field(&mut data, 2, content);
    }
    bytes_field(&mut metadata, 1, &data);
    metadata
}

fn number_field(message: &mut Vec<u8>, field: u8, value: u64) {
    message.push(field << 3);
    varint(message, value);
}

fn text_field(message: &mut Vec<u8>, field: u8, value: &str) {
    bytes_field(message, field, value.as_bytes());
}

fn bytes_field(message: &mut Vec<u8>, field: u8, value: &[u8]) {
    message.push(field << 3 | 2);
    varint(message, value.len() as u64);
    message.extend(value);
}

fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

/// Records that hold checksums themselves must not fool one: hence the rotation and the constant.
fn masked_checksum(bytes: &[u8]) -> u32 {
    checksum(bytes).rotate_right(15).wrapping_add(MASK_DELTA)
}

fn checksum(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc));
    !bytes.iter().fold(!0, byte)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Takes the records of a file apart, checking every checksum.
    pub(in crate::tensorboard) fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let check = |of: &[u8], at: usize| {
                let told = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                assert_eq!(masked_checksum(of), told);
            };
            let event = &bytes[12..12 + length];
            check(&bytes[..8], 8);
            check(event, 12 + length);
            records.push(event.to_vec());
            bytes = &bytes[16 + length..];
        }
        records
    }

    /// The fields of a message: number, and content of those that have a length or the number of those that are one.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let length = match key & 7 {
                0 => {
                    let number = varint(&mut bytes);
                    found.push((key >> 3, vec![number as u8]));
                    continue;
                }
                1 => 8,
                2 => varint(&mut bytes) as usize,
                5 => 4,
                wire => panic!("wire type {wire}"),
            };
            found.push((key >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        found
    }

    /// What is found by following field numbers, always the first of each.
    fn at(message: &[u8], path: &[u64]) -> Vec<u8> {
        path.iter().fold(message.to_vec(), |message, number| {
            let mut fields = fields(&message).into_iter();
            let field = fields.find(|(other, _)| other == number);
            field
                .unwrap_or_else(|| panic!("no field {number} of {path:?}"))
                .1
        })
    }

    #[test]
    fn the_checksum_is_crc_32c() {
        // The check value of the polynomial's catalogue entry.
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        assert_eq!(checksum(b""), 0);
    }

    #[test]
    fn a_picture_has_its_size_and_bytes() {
        let picture = Picture {
            tag: "heldout/pairs".to_owned(),
            step: 10,
            size: (64, 48),
            png: b"png".to_vec(),
        };
        let Event(event) = Event::picture(&picture, 1_000);
        assert_eq!(at(&event, &[2]), [10]);
        assert_eq!(at(&event, &[5, 1, 1]), b"heldout/pairs");
        let image = at(&event, &[5, 1, 4]);
        let expected = [
            (1, vec![48]),
            (2, vec![64]),
            (3, vec![3]),
            (4, b"png".to_vec()),
        ];
        assert_eq!(fields(&image), expected);
    }

    #[test]
    fn a_text_is_a_string_for_its_plugin() {
        let Event(event) = Event::text("run_file", "# it", 1_000);
        assert_eq!(at(&event, &[5, 1, 8, 8]), b"# it");
        assert_eq!(at(&event, &[5, 1, 8, 1]), [7]);
        assert_eq!(at(&event, &[5, 1, 8, 2, 2, 1]), [1], "of shape [1]");
        assert_eq!(at(&event, &[5, 1, 9, 1, 1]), b"text");
    }

    #[test]
    fn settings_are_a_map_for_their_plugin() {
        let settings = [
            ("seed".to_owned(), Setting::Number(0.5)),
            ("solver".to_owned(), Setting::Text("dpm2".to_owned())),
            ("permute".to_owned(), Setting::Switch(true)),
        ];
        let Event(event) = Event::settings(&settings, 1_000);
        assert_eq!(at(&event, &[5, 1, 1]), b"_hparams_/session_start_info");
        assert_eq!(at(&event, &[5, 1, 9, 1, 1]), b"hparams");
        let info = at(&event, &[5, 1, 9, 1, 2, 3]);
        let entries = fields(&info);
        let value = |index: usize, field| at(&entries[index].1, &[2, field]);
        assert_eq!(value(0, 2), 0.5_f64.to_le_bytes());
        assert_eq!(value(1, 3), b"dpm2");
        assert_eq!(value(2, 4), [1]);
        assert_eq!(at(&entries[2].1, &[1]), b"permute");
    }
}
