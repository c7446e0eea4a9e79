//! The rights of the parts of a range, as the crate was told them and restores them.

use crate::sys::map::Prot;
use crate::sys::{Addr, AddrRange};

/// A part of a range with the same rights throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) range: AddrRange,
    pub(super) prot: Prot,
}

/// The parts of a range, in order and without gaps; neighbours differ in their rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rights(Vec<Part>);

impl Rights {
    pub(super) fn whole(range: AddrRange, prot: Prot) -> Self {
        Self(vec![Part { range, prot }])
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The rights at an address; none outside the range.
    #[cfg(test)]
    pub(super) fn at(&self, addr: Addr) -> Prot {
        self.0.iter().find(|part| part.range.contains(addr)).map_or(Prot::None, |part| part.prot)
    }

    /// Gives `changed`, which is within the range, other rights.
    pub(super) fn set(&mut self, changed: AddrRange, prot: Prot) {
        let piece =
            |from: Addr, to: Addr, prot| (from < to).then(|| Part { range: AddrRange::between(from, to), prot });
        let around = self.0.iter().flat_map(|part| {
            let before = piece(part.range.start, part.range.end().min(changed.start), part.prot);
            let after = piece(part.range.start.max(changed.end()), part.range.end(), part.prot);
            before.into_iter().chain(after)
        });
        let mut parts: Vec<Part> = around.chain([Part { range: changed, prot }]).collect();
        parts.sort_by_key(|part| part.range.start);
        parts.dedup_by(|next, part| {
            let same = next.prot == part.prot;
            part.range.len += if same { next.range.len } else { 0 };
            same
        });
        self.0 = parts;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_prot() -> impl Strategy<Value = Prot> {
        prop_oneof![Just(Prot::None), Just(Prot::Read), Just(Prot::ReadWrite)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 512 }, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn each_page_has_the_rights_that_it_was_given_last(
            changes in prop::collection::vec((0usize..32, 1usize..32, any_prot()), 0..12),
        ) {
            let whole = AddrRange::new(Addr(1000), 32);
            let mut rights = Rights::whole(whole, Prot::ReadWrite);
            let mut pages = [Prot::ReadWrite; 32];
            for (from, len, prot) in changes {
                let len = len.min(32 - from);
                rights.set(whole.part(from, len), prot);
                pages[from..from + len].fill(prot);
            }
            for (at, prot) in pages.into_iter().enumerate() {
                prop_assert_eq!(rights.at(Addr(1000 + at)), prot);
            }
            let parts = rights.parts();
            prop_assert_eq!(parts.first().map(|part| part.range.start), Some(whole.start));
            prop_assert_eq!(parts.last().map(|part| part.range.end()), Some(whole.end()));
            for pair in parts.windows(2) {
                prop_assert_eq!(pair[0].range.end(), pair[1].range.start);
                prop_assert_ne!(pair[0].prot, pair[1].prot);
            }
        }
    }
}
