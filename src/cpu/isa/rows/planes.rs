//! Key rows in planes of directions, sixteen codes at a time.

use super::window::window;
use crate::cpu::decode::chunk::HeadLanes;
use crate::cpu::isa::vector::{LANES, Vector};
use crate::format::v1::layout::MAX_HEAD_DIM;
use crate::format::v3::{LEVELS_2, LEVELS_4, OFFSET, Planes, RANGES};

/// Most blocks of codes: each plane may end within one, the last one, which is read two at a time, within two.
pub(in crate::cpu) const MOST_BLOCKS: usize = MAX_HEAD_DIM / LANES + 4;

/// Bytes beyond the fields that vectors may reach.
const BEYOND: usize = 2 * LANES;

/// Most bytes of a row that vectors may reach.
const MOST_REACHED: usize = Planes::CODES_AT + MAX_HEAD_DIM + BEYOND;

/// What four bits stand for, two codes of 2 bits, by the low and by the high one.
pub(super) const PAIRS: [[u8; 16]; 2] = {
    let mut books = [[0; 16]; 2];
    let mut i = 0;
    while i < 16 {
        books[0][i] = LEVELS_2[i & 3];
        books[1][i] = LEVELS_2[i >> 2];
        i += 1;
    }
    books
};

/// The first of `rows` with what vectors may reach behind its fields: itself, or a `copy` of one that ends with its
/// memory.
#[inline(always)]
pub(super) fn reachable<'a>(planes: &Planes, rows: &'a [u8], copy: &'a mut Option<[u8; MOST_REACHED]>) -> &'a [u8] {
    let used = planes.bytes();
    if rows.len() >= used + BEYOND {
        return &rows[..used + BEYOND];
    }
    let copy = copy.insert([0; MOST_REACHED]);
    copy[..used].copy_from_slice(&rows[..used]);
    &copy[..used + BEYOND]
}

/// Queries as the codes of rows are multiplied with them.
pub(in crate::cpu) type Queries<const H: usize> = [HeadLanes<H>; MOST_BLOCKS];

/// Reads key rows in planes for `H` queries.
pub(in crate::cpu) struct PlaneReader<'a, const H: usize> {
    planes: Planes,
    /// Blocks of each plane.
    blocks: [usize; 3],
    /// Block by block, in units of a level of the plane; zero where a block goes beyond its plane.
    queries: &'a Queries<H>,
}

impl<'a, const H: usize> PlaneReader<'a, H> {
    /// For `queries`, block by block of directions. `scratch` is zero.
    #[inline(always)]
    pub(in crate::cpu) fn new(planes: Planes, queries: &[HeadLanes<H>], scratch: &'a mut Queries<H>) -> Self {
        let counts = planes.counts();
        let [eight, four, two] = counts;
        let blocks = [eight.div_ceil(LANES), four.div_ceil(LANES), 2 * two.div_ceil(2 * LANES)];
        let (mut direction, mut block) = (0, 0);
        for plane in 0..3 {
            let unit = RANGES[plane] / 127.0;
            for code in 0..counts[plane] {
                // Of each two blocks of 2 bits, the first has the even codes, the second the odd ones.
                let (at, lane) = match plane {
                    2 => (code / (2 * LANES) * 2 + code % 2, code % (2 * LANES) / 2),
                    _ => (code / LANES, code % LANES),
                };
                for h in 0..H {
                    scratch[block + at].0[h][lane] = queries[direction / LANES].0[h][direction % LANES] * unit;
                }
                direction += 1;
            }
            block += blocks[plane];
        }
        Self { planes, blocks, queries: scratch }
    }

    /// Products of the queries with each of `R` rows. Each of `rows` begins with the row; what follows it may be read
    /// and is not looked at.
    #[inline(always)]
    pub(in crate::cpu) fn products<V: Vector, const R: usize>(&self, v: V, rows: [&[u8]; R]) -> [[f32; H]; R] {
        let mut copies = [const { None }; R];
        let mut copies = copies.iter_mut();
        self.products_of(v, rows.map(|rows| reachable(&self.planes, rows, copies.next().expect("one a row"))))
    }

    #[inline(always)]
    fn products_of<V: Vector, const R: usize>(&self, v: V, rows: [&[u8]; R]) -> [[f32; H]; R] {
        let mut sums = [[v.splat(0.0); H]; R];
        let mut products = [[0.0; H]; R];
        let offset = v.splat(-f32::from(OFFSET));
        let [eight, four, two] = self.blocks;
        let mut queries = self.queries.iter();
        macro_rules! add {
            ($n:ident, $codes:expr, $query:ident) => {
                let x = v.add($codes, offset);
                for (sum, query) in sums[$n].iter_mut().zip(&$query.0) {
                    *sum = v.mul_add(x, v.load(query), *sum);
                }
            };
        }
        for (block, query) in (0..eight).zip(&mut queries) {
            for n in 0..R {
                add!(n, v.load_u8(window(rows[n], Planes::CODES_AT + block * LANES)), query);
            }
        }
        let at = self.planes.fours_at();
        for (block, query) in (0..four).zip(&mut queries) {
            for n in 0..R {
                let nibbles = window(rows[n], at + block * LANES / 2);
                add!(n, v.expand_by_codebook(&LEVELS_4, nibbles, false, u16::MAX), query);
            }
        }
        let at = self.planes.twos_at();
        for (block, query) in (0..two).zip(&mut queries) {
            for n in 0..R {
                let nibbles = window(rows[n], at + block / 2 * LANES / 2);
                add!(n, v.expand_by_codebook(&PAIRS[block % 2], nibbles, false, u16::MAX), query);
            }
        }
        for n in 0..R {
            let scale = v.eight_f16(window(rows[n], 0))[0];
            products[n] = v.sums(sums[n]).map(|sum| sum * scale);
        }
        products
    }
}
