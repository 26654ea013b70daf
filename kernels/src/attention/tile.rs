//! What of queries, keys and values is in shared memory, and how it comes there.

use burn_backend::DType;
use cubecl::prelude::*;

/// Units of a plane, as `mma.m16n8k16` counts them.
const PLANE: usize = 32;
/// Rows of a plane.
const ROWS: usize = 16;

/// The tiles of a cube. Shared memory holds pairs of neighbouring numbers; a row of pairs is padded so that the eight rows which
/// a plane reads at once lie in different banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    /// Numbers of a head.
    pub(super) width: usize,
    /// Keys of a tile.
    pub(super) keys: usize,
    /// Planes of a cube.
    planes: usize,
    pub(super) tensor_cores: bool,
    /// Whether queries see ranges of the keys, not all.
    pub(super) ranged: bool,
    padding: usize,
}

impl Layout {
    pub(super) fn new(
        client: &Client,
        dtype: DType,
        width: usize,
        tensor_cores: bool,
        ranged: bool,
    ) -> Self {
        let most = client.properties().hardware.max_shared_memory_size;
        let mut layout = Self {
            width,
            keys: 64,
            planes: 4,
            tensor_cores,
            ranged,
            padding: 4,
        };
        if !tensor_cores {
            // Units that read one number after the other want no tiles that are large.
            (layout.keys, layout.planes) = (16, 1);
        }
        while layout.bytes(dtype) > most && layout.keys > ROWS {
            layout.keys /= 2;
        }
        layout
    }

    fn bytes(&self, dtype: DType) -> usize {
        let pairs = (self.queries() + self.keys) * self.row_pitch()
            + self.width * self.column_pitch()
            + self.probabilities();
        2 * pairs * dtype.size() + 4 * self.exchange()
    }

    pub(super) fn units(&self) -> usize {
        self.planes * PLANE
    }

    /// Queries of a cube.
    pub(super) fn queries(&self) -> usize {
        self.planes * ROWS
    }

    /// Pairs from a query or key to the next.
    pub(super) fn row_pitch(&self) -> usize {
        self.width / 2 + self.padding
    }

    /// Pairs from a column of values to the next.
    pub(super) fn column_pitch(&self) -> usize {
        self.keys / 2 + self.padding
    }

    /// Pairs of probabilities, which only leave their units where these compute by themselves.
    pub(super) fn probabilities(&self) -> usize {
        if self.tensor_cores {
            1
        } else {
            self.queries() * self.keys / 2
        }
    }

    pub(super) fn exchange(&self) -> usize {
        if self.tensor_cores { 1 } else { self.units() }
    }
}

#[cube]
pub(super) fn pair<E: Scalar>(first: E, second: E) -> Vector<E, Const<2>> {
    let mut pair = Vector::<E, Const<2>>::empty();
    pair.insert(0usize, first);
    pair.insert(1usize, second);
    pair
}

/// Puts rows into a tile, zeros where there are none.
#[cube]
pub(super) fn load_rows<E: Float, N: Size>(
    x: &[Vector<E, N>],
    tile: &mut Shared<[Vector<E, Const<2>>]>,
    from: usize,
    row_stride: usize,
    first: usize,
    rows: usize,
    #[comptime] count: usize,
    #[comptime] layout: Layout,
) {
    let size = N::value();
    let vectors = comptime!(layout.width / size);
    let all = comptime!(count * layout.width / size);
    #[unroll]
    for i in 0..comptime!(all.div_ceil(layout.units())) {
        let at = UNIT_POS as usize + comptime!(i * layout.units());
        if at < all {
            let (row, inner) = (at / vectors, at % vectors);
            let mut value = Vector::<E, N>::new(E::new(0.0f32));
            if first + row < rows {
                value = x[from + (first + row) * row_stride + inner];
            }
            let to = row * comptime!(layout.row_pitch()) + inner * comptime!(size / 2);
            #[unroll]
            for j in 0..comptime!(size / 2) {
                tile[to + j] = pair::<E>(
                    value.extract(comptime!(2 * j)),
                    value.extract(comptime!(2 * j + 1)),
                );
            }
        }
    }
}

#[cube]
pub(super) fn load_keys<E: Float, N: Size>(
    k: &[Vector<E, N>],
    tile: &mut Shared<[Vector<E, Const<2>>]>,
    from: usize,
    row_stride: usize,
    first: usize,
    keys: usize,
    #[comptime] layout: Layout,
) {
    load_rows::<E, N>(
        k,
        tile,
        from,
        row_stride,
        first,
        keys,
        comptime!(layout.keys),
        layout,
    );
}

/// Puts values into a tile by columns, pairs being of neighbouring keys.
#[cube]
pub(super) fn load_values<E: Float, N: Size>(
    v: &[Vector<E, N>],
    tile: &mut Shared<[Vector<E, Const<2>>]>,
    from: usize,
    row_stride: usize,
    first: usize,
    keys: usize,
    #[comptime] layout: Layout,
) {
    // Neighbouring units have neighbouring keys: what they write lies side by side.
    let pairs = comptime!(layout.keys / 2);
    let size = N::value();
    let all = comptime!(layout.keys / 2 * layout.width / size);
    #[unroll]
    for i in 0..comptime!(all.div_ceil(layout.units())) {
        let at = UNIT_POS as usize + comptime!(i * layout.units());
        if at < all {
            let (row, inner) = (at % pairs, at / pairs);
            let key = first + 2 * row;
            let mut upper = Vector::<E, N>::new(E::new(0.0f32));
            let mut lower = Vector::<E, N>::new(E::new(0.0f32));
            if key < keys {
                upper = v[from + key * row_stride + inner];
            }
            if key + 1 < keys {
                lower = v[from + (key + 1) * row_stride + inner];
            }
            #[unroll]
            for j in 0..N::value() {
                let column = inner * N::value() + j;
                tile[column * comptime!(layout.column_pitch()) + row] =
                    pair::<E>(upper.extract(j), lower.extract(j));
            }
        }
    }
}
