//! Rows of tokens on the host: what each of them is, and where it stands.

use super::grid::Grid;

/// A batch of tokenised prompts, padded to one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRows {
    /// Token ids, row after row.
    pub ids: Vec<u32>,
    /// Whether a token is real or padding, as `ids`. Padding is on one side of a row, real tokens are together.
    pub attention_mask: Vec<bool>,
    /// Number of rows.
    pub batch: usize,
}

/// Which tokens stand for images, and how many patches are one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageTokens {
    /// The id of the token that stands for one merged patch.
    pub token_id: u32,
    /// Side of the square of patches that becomes one token.
    pub merge_size: usize,
}

impl TokenRows {
    /// Rows without padding, all of one length.
    pub fn unpadded(rows: &[Vec<u32>]) -> Self {
        let ids: Vec<u32> = rows.concat();
        assert!(
            rows.iter().all(|row| row.len() * rows.len() == ids.len()),
            "rows without padding have one length"
        );
        Self {
            attention_mask: vec![true; ids.len()],
            ids,
            batch: rows.len(),
        }
    }

    /// Tokens in a row, padding included.
    pub fn length(&self) -> usize {
        self.ids.len() / self.batch
    }

    /// The real tokens of each row.
    pub fn real(&self) -> Vec<std::ops::Range<usize>> {
        self.attention_mask
            .chunks_exact(self.length())
            .map(real_range)
            .collect()
    }

    /// `get_rope_index`: temporal, height and width position of each token, row after row; zeros for padding.
    ///
    /// Text advances all three together; an image is a box whose corner is the next free position, and the text
    /// after it goes on beyond the box's longer side.
    ///
    /// # Panics
    /// If the image tokens do not fit the grids.
    pub fn rope_index(&self, grids: &[Grid], image: ImageTokens) -> Vec<[usize; 3]> {
        let mut positions = vec![[0; 3]; self.ids.len()];
        let mut grids = grids.iter();
        let length = self.length();
        for (row, real) in self.real().into_iter().enumerate() {
            let real = row * length + real.start..row * length + real.end;
            let found = row_positions(&self.ids[real.clone()], &mut grids, image);
            positions[real].copy_from_slice(&found);
        }
        positions
    }

    /// Where the embedding of each token comes from, images being used in the order of their tokens.
    pub(super) fn slots(&self, image: ImageTokens) -> Vec<Slot> {
        let mut next = 0;
        let slot = |id: &u32| {
            if *id != image.token_id {
                return Slot::Text(*id);
            }
            next += 1;
            Slot::Image(next - 1)
        };
        self.ids.iter().map(slot).collect()
    }
}

fn real_range(mask: &[bool]) -> std::ops::Range<usize> {
    let start = mask.iter().take_while(|real| !**real).count();
    let end = start + mask[start..].iter().take_while(|real| **real).count();
    assert!(
        start < end && !mask[end..].contains(&true),
        "a row has real tokens, all of them together"
    );
    start..end
}

fn row_positions<'a>(
    ids: &[u32],
    grids: &mut impl Iterator<Item = &'a Grid>,
    image: ImageTokens,
) -> Vec<[usize; 3]> {
    let mut positions = Vec::with_capacity(ids.len());
    let mut next = 0;
    while positions.len() < ids.len() {
        if ids[positions.len()] != image.token_id {
            positions.push([next; 3]);
            next += 1;
            continue;
        }
        let grid = grids.next().expect("every image has a grid");
        let (height, width) = (
            grid.height / image.merge_size,
            grid.width / image.merge_size,
        );
        for frame in 0..grid.frames {
            for place in 0..height * width {
                positions.push([next + frame, next + place / width, next + place % width]);
            }
        }
        next += height.max(width);
    }
    assert_eq!(
        positions.len(),
        ids.len(),
        "an image has as many tokens as its grid"
    );
    positions
}

/// Where the embedding of a token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The embedding matrix, at this id.
    Text(u32),
    /// The image features, at this row.
    Image(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: ImageTokens = ImageTokens {
        token_id: 9,
        merge_size: 2,
    };

    #[test]
    fn text_goes_on_beyond_the_longer_side_of_an_image() {
        let grid = Grid {
            frames: 1,
            height: 2,
            width: 6,
        };
        let tokens = TokenRows::unpadded(&[vec![1, 9, 9, 9, 2]]);
        let expected = [[0, 0, 0], [1, 1, 1], [1, 1, 2], [1, 1, 3], [4, 4, 4]];
        assert_eq!(tokens.rope_index(&[grid], IMAGE), expected);
    }

    #[test]
    fn padding_moves_no_position() {
        let tokens = TokenRows {
            ids: vec![0, 0, 5, 6, 7, 8, 0, 0],
            attention_mask: [false, false, true, true, true, true, false, false].to_vec(),
            batch: 2,
        };
        let positions = tokens.rope_index(&[], IMAGE);
        assert_eq!(positions[2..6], [[0; 3], [1; 3], [0; 3], [1; 3]]);
        assert_eq!(tokens.real(), [2..4, 0..2]);
    }

    #[test]
    #[should_panic(expected = "as many tokens as its grid")]
    fn an_image_with_too_few_tokens_is_refused() {
        let grid = Grid {
            frames: 1,
            height: 4,
            width: 4,
        };
        TokenRows::unpadded(&[vec![9, 9]]).rope_index(&[grid], IMAGE);
    }
}
