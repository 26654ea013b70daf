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

/// An order of the merged tokens in which those that attend to each other are neighbours.
///
/// Segments are sorted by length, so that equal ones can be computed as a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The merged token that comes i-th.
    pub(super) order: Vec<usize>,
    /// Which patches attend to each other.
    pub(super) runs: Vec<Run>,
}

/// Neighbouring segments of equal length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Number of segments.
    pub(super) count: usize,
    /// Patches in each of them.
    pub(super) length: usize,
}

impl Layout {
    /// Attention within windows.
    pub(super) fn windows(grids: &[Grid], config: &VisionConfig) -> Self {
        let window = config.merged_window();
        let frames = frames(grids, config.spatial_merge_size);
        let segments = frames.flat_map(|frame| frame.windows(window)).collect();
        Self::new(segments, config.merge_unit())
    }

    /// Attention within whole frames.
    pub(super) fn frames(grids: &[Grid], config: &VisionConfig) -> Self {
        let frames = frames(grids, config.spatial_merge_size);
        let segments = frames.map(|frame| frame.tokens().collect()).collect();
        Self::new(segments, config.merge_unit())
    }

    fn new(mut segments: Vec<Vec<usize>>, merge_unit: usize) -> Self {
        segments.sort_by_key(|segment| std::cmp::Reverse(segment.len()));
        let runs = segments.chunk_by(|a, b| a.len() == b.len()).map(|run| Run {
            count: run.len(),
            length: run[0].len() * merge_unit,
        });
        Self {
            runs: runs.collect(),
            order: segments.concat(),
        }
    }

    /// The place of every merged token in the order.
    pub(super) fn places(&self) -> Vec<usize> {
        inverse(&self.order)
    }
}

/// Where each index of a permutation is found.
pub(super) fn inverse(order: &[usize]) -> Vec<usize> {
    let mut places = vec![0; order.len()];
    for (place, index) in order.iter().enumerate() {
        places[*index] = place;
    }
    places
}

/// Whether a permutation changes nothing.
pub(super) fn is_identity(order: &[usize]) -> bool {
    order
        .iter()
        .enumerate()
        .all(|(place, index)| place == *index)
}

/// A frame of an image, in merged tokens.
#[derive(Clone, Copy)]
struct Frame {
    first: usize,
    rows: usize,
    columns: usize,
}

fn frames(grids: &[Grid], merge_size: usize) -> impl Iterator<Item = Frame> {
    let mut first = 0;
    let sizes = grids.iter().flat_map(move |grid| {
        let size = [grid.height / merge_size, grid.width / merge_size];
        std::iter::repeat_n(size, grid.frames)
    });
    sizes.map(move |[rows, columns]| {
        let frame = Frame {
            first,
            rows,
            columns,
        };
        first += rows * columns;
        frame
    })
}

impl Frame {
    fn tokens(self) -> std::ops::Range<usize> {
        self.first..self.first + self.rows * self.columns
    }

    /// The tokens of each window; those at the right and bottom may be smaller.
    fn windows(self, side: usize) -> Vec<Vec<usize>> {
        let mut windows = Vec::new();
        for top in (0..self.rows).step_by(side) {
            for left in (0..self.columns).step_by(side) {
                let rows = top..self.rows.min(top + side);
                let columns = left..self.columns.min(left + side);
                let row = |row| {
                    columns
                        .clone()
                        .map(move |column| self.first + row * self.columns + column)
                };
                windows.push(rows.flat_map(row).collect());
            }
        }
        windows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Frame = Frame {
        first: 10,
        rows: 2,
        columns: 3,
    };

    #[test]
    fn windows_cover_a_frame_and_shrink_at_its_edges() {
        assert_eq!(FRAME.windows(2), [vec![10, 11, 13, 14], vec![12, 15]]);
        assert_eq!(FRAME.windows(9), [FRAME.tokens().collect::<Vec<_>>()]);
    }

    #[test]
    fn equal_segments_become_one_run() {
        let layout = Layout::new(vec![vec![0], vec![1, 2], vec![3], vec![4, 5]], 4);
        assert_eq!(layout.order, [1, 2, 4, 5, 0, 3]);
        let run = |count, length| Run { count, length };
        assert_eq!(layout.runs, [run(2, 8), run(2, 4)]);
        assert_eq!(layout.places(), [4, 0, 1, 5, 2, 3]);
    }

    #[test]
    fn patches_come_in_blocks() {
        let grid = Grid {
            frames: 1,
            height: 2,
            width: 4,
        };
        let expected = [
            [0, 0],
            [0, 1],
            [1, 0],
            [1, 1],
            [0, 2],
            [0, 3],
            [1, 2],
            [1, 3],
        ];
        assert_eq!(patch_positions(&[grid], 2), expected);
    }
}
