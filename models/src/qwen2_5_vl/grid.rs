//! Image grids: where patches sit, and in which order the vision tower sees them.

use super::VisionConfig;

/// A row of `image_grid_thw`: the patches of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Groups of frames; 1 for a still image.
    pub frames: usize,
    /// Patches from top to bottom.
    pub height: usize,
    /// Patches from left to right.
    pub width: usize,
}

impl Grid {
    /// Patches in all.
    pub fn patches(&self) -> usize {
        self.frames * self.height * self.width
    }

    /// Tokens of the language model, one per `merge_size` x `merge_size` patches.
    pub fn tokens(&self, merge_size: usize) -> usize {
        self.patches() / (merge_size * merge_size)
    }
}

/// Row and column of every patch, in the order of the patches: block after block of `merge_size` x `merge_size`.
pub(super) fn patch_positions(grids: &[Grid], merge_size: usize) -> Vec<[usize; 2]> {
    let mut positions = Vec::new();
    for grid in grids {
        for _ in 0..grid.frames {
            for block in 0..grid.height * grid.width / (merge_size * merge_size) {
                let blocks_across = grid.width / merge_size;
                let (top, left) = (block / blocks_across, block % blocks_across);
                for inner in 0..merge_size * merge_size {
                    positions.push([
                        top * merge_size + inner / merge_size,
                        left * merge_size + inner % merge_size,
                    ]);
                }
            }
        }
    }
    positions
}

/// The segments of full attention, each one frame of an image: `0, n0, n0 + n1, ...` in patches.
pub(super) fn frame_boundaries(grids: &[Grid]) -> Vec<usize> {
    let lengths = grids
        .iter()
        .flat_map(|grid| std::iter::repeat_n(grid.height * grid.width, grid.frames));
    boundaries(lengths)
}

fn boundaries(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut ends = vec![0];
    for length in lengths {
        ends.push(ends[ends.len() - 1] + length);
    }
    ends
}

/// The merged tokens sorted by attention window.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Windows {
    /// The merged token that comes i-th.
    pub(super) order: Vec<usize>,
    /// Where windows begin and end, in patches.
    pub(super) boundaries: Vec<usize>,
}

impl Windows {
    pub(super) fn new(grids: &[Grid], config: &VisionConfig) -> Self {
        let (merge, window) = (config.spatial_merge_size, config.merged_window());
        let mut order = Vec::new();
        let mut lengths = Vec::new();
        let mut first = 0;
        for grid in grids {
            let (rows, columns) = (grid.height / merge, grid.width / merge);
            for _ in 0..grid.frames {
                for top in (0..rows).step_by(window) {
                    for left in (0..columns).step_by(window) {
                        let before = order.len();
                        for row in top..rows.min(top + window) {
                            let tokens = left..columns.min(left + window);
                            order.extend(tokens.map(|column| first + row * columns + column));
                        }
                        lengths.push((order.len() - before) * config.merge_unit());
                    }
                }
                first += rows * columns;
            }
        }
        Self {
            order,
            boundaries: boundaries(lengths.into_iter()),
        }
    }

    /// Whether the tokens already come window by window.
    pub(super) fn in_order(&self) -> bool {
        self.order
            .iter()
            .enumerate()
            .all(|(index, token)| index == *token)
    }

    /// The place of every merged token in [`Windows::order`].
    pub(super) fn places(&self) -> Vec<usize> {
        let mut places = vec![0; self.order.len()];
        for (place, token) in self.order.iter().enumerate() {
            places[*token] = place;
        }
        places
    }
}
