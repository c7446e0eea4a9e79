//! The parts of an area that can be in the guest's memory map.

use std::ops::Range;

/// The whole pages of an area, without those that have a byte of a trap. All are ranges of the BAR; the area begins at a
/// page's start, and the traps are in order.
pub(super) fn mappable<'a>(
    area: &Range<u64>,
    traps: impl IntoIterator<Item = &'a Range<u64>>,
    page: u64,
) -> Vec<Range<u64>> {
    let end = area.end - area.end % page;
    let mut from = area.start;
    let mut pieces = Vec::new();
    for trap in traps {
        let start = trap.start - trap.start % page;
        if from < start.min(end) {
            pieces.push(from..start.min(end));
        }
        from = from.max(trap.end.checked_next_multiple_of(page).unwrap_or(u64::MAX));
    }
    if from < end {
        pieces.push(from..end);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_table_in_the_middle_of_a_page_keeps_that_page_out() {
        let pieces = |start, end, traps: &[(u64, u64)]| {
            let traps: Vec<_> = traps.iter().map(|(start, end)| *start..*end).collect();
            let pieces = mappable(&(start..end), &traps, 0x1000).into_iter();
            pieces.map(|piece| (piece.start, piece.end)).collect::<Vec<_>>()
        };
        assert_eq!(pieces(0, 0x4000, &[(0x1010, 0x1020)]), [(0, 0x1000), (0x2000, 0x4000)]);
        assert_eq!(pieces(0x1000, 0x4000, &[(0, 0x10), (0x2fff, 0x3001)]), [(0x1000, 0x2000)]);
        assert_eq!(pieces(0, 0x1080, &[]), [(0, 0x1000)]);
        assert_eq!(pieces(0, 0x100, &[]), []);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 2000 }, failure_persistence: None, ..ProptestConfig::default() })]

        /// A page is mapped exactly if the area has all of it and no trap has any of it.
        #[test]
        fn a_page_is_mapped_or_exits_as_a_whole(
            start in 0_u64..4,
            len in 0_u64..40_000,
            mut traps in prop::collection::vec((0_u64..50_000, 1_u64..9_000), 0..4),
        ) {
            traps.sort_unstable();
            let traps: Vec<_> = traps.iter().map(|(at, len)| *at..at + len).collect();
            let area = start * 4096..start * 4096 + len;
            let pieces = mappable(&area, &traps, 4096);
            for page in (0..20).map(|page| page * 4096..(page + 1) * 4096) {
                let whole = area.start <= page.start && page.end <= area.end;
                let trapped = traps.iter().any(|trap| trap.start < page.end && page.start < trap.end);
                let mapped = pieces.iter().filter(|piece| piece.start <= page.start && page.end <= piece.end).count();
                prop_assert_eq!(mapped, usize::from(whole && !trapped), "{:x?} in {:x?}", page, pieces);
            }
        }
    }
}
