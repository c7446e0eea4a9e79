//! What the kernel says about a region of a device: its size, its place in the device's file, and the parts of it that can be
//! mapped.

use super::abi;
use super::error::VfioError;
use super::reply::Reply;
use std::ops::Range;
use std::os::fd::BorrowedFd;

bitflags::bitflags! {
    /// What can be done with a region (`VFIO_REGION_INFO_FLAG_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RegionFlags: u32 {
        /// It can be read.
        const READ = 1;
        /// It can be written.
        const WRITE = 1 << 1;
        /// It can be mapped, or [areas](RegionInfo::with_areas) of it can.
        const MMAP = 1 << 2;
        /// Capabilities follow it.
        const CAPS = 1 << 3;
    }
}

/// A region of a device, as `VFIO_DEVICE_GET_REGION_INFO` describes it.
///
/// ```
/// use revocable_mmio::vfio::{RegionFlags, RegionInfo, VfioError};
///
/// let flags = RegionFlags::READ | RegionFlags::WRITE | RegionFlags::MMAP;
/// let bar = RegionInfo::new(0, 0x4000, flags);
/// assert_eq!((bar.offset(), bar.size(), bar.flags()), (0, 0x4000, flags));
/// assert_eq!(bar.mappable(4096), [0..0x4000]);
/// let bar = bar.with_areas([0..0x1000, 0x2800..0x4000]); // the MSI-X table is in between
/// assert_eq!(bar.mappable(4096), [0..0x1000, 0x3000..0x4000]);
/// assert!(matches!(RegionInfo::parse(&[0; 8]), Err(VfioError::Reply { .. })), "too short");
///
/// /// The BAR of a device.
/// fn first_bar(device: std::os::fd::BorrowedFd<'_>) -> Result<RegionInfo, VfioError> {
///     RegionInfo::ask(device, 0)
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    offset: u64,
    size: u64,
    flags: RegionFlags,
    /// `None`: the whole of it.
    areas: Option<Vec<Range<u64>>>,
}

/// The length of struct vfio_region_info, in bytes.
const INFO: usize = 32;
/// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`: only areas of the region can be mapped.
const SPARSE_MMAP: u16 = 1;
/// The length of a capability's header, and of the fields before a list of areas, in bytes.
const HEADER: usize = 8;
const AREAS: usize = 16;

impl RegionInfo {
    /// A region of `size` bytes at `offset` of the device's file, of which the whole can be mapped if the flags say so.
    pub fn new(offset: u64, size: u64, flags: RegionFlags) -> Self {
        Self { offset, size, flags, areas: None }
    }

    /// The same, of which only these areas can be mapped (offsets in the region, in bytes):
    /// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`. They may come in any order.
    ///
    /// Drivers of Linux 7.3 that report them are `nvgrace-gpu` (the GPU's memory, in a BAR that is a power of two) and `kvmgt`;
    /// vfio-pci itself did before 4.16, for BARs with a table of MSI-X vectors. Servers of vfio-user do.
    #[must_use]
    pub fn with_areas(mut self, areas: impl IntoIterator<Item = Range<u64>>) -> Self {
        self.areas = Some(areas.into_iter().collect());
        self
    }

    /// Asks the kernel about the region `index` of a device: for PCI, 0 to 5 are its BARs, 6 is the ROM, and 7 is its
    /// configuration space.
    ///
    /// # Errors
    /// The kernel's (EINVAL: there is no such index), or a reply that contradicts itself.
    pub fn ask(device: BorrowedFd<'_>, index: u32) -> Result<Self, VfioError> {
        Self::parse(&abi::region_info(device, index)?)
    }

    /// Reads a reply of `VFIO_DEVICE_GET_REGION_INFO`: struct vfio_region_info, and the capabilities after it. Nothing that
    /// it says is trusted: lengths and offsets are checked against the reply, and against each other.
    ///
    /// # Errors
    /// [`VfioError::Reply`] says what contradicts.
    pub fn parse(reply: &[u8]) -> Result<Self, VfioError> {
        let reply = Reply::new("struct vfio_region_info", reply);
        let argsz = reply.u32(0)? as usize;
        if argsz < INFO {
            return Err(reply.wrong("it says that it is shorter than itself"));
        }
        let reply = reply.first(argsz);
        let flags = RegionFlags::from_bits_retain(reply.u32(4)?);
        let (size, offset) = (reply.u64(16)?, reply.u64(24)?);
        if offset.checked_add(size).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(reply.wrong("the region is longer than a file can be"));
        }
        let mut info = Self::new(offset, size, flags);
        let mut at = if flags.contains(RegionFlags::CAPS) { reply.u32(12)? as usize } else { 0 };
        let mut before = INFO - 1;
        while at != 0 {
            // The kernel appends: a chain that goes back would have no end.
            if at <= before {
                return Err(reply.wrong("its capabilities go back"));
            }
            before = at + HEADER - 1;
            let (id, next) = (reply.u16(at)?, reply.u32(at + 4)? as usize);
            if id == SPARSE_MMAP {
                info.areas = Some(areas(&reply, at, size)?);
            }
            at = next;
        }
        Ok(info)
    }

    /// Its size, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where it is in the device's file, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What can be done with it.
    pub fn flags(&self) -> RegionFlags {
        self.flags
    }

    /// The parts of it that can be mapped with pages of `page` bytes: offsets in the region, in order and apart from each
    /// other. An area that begins or ends inside of a page loses that page, except the last page of a region whose size is
    /// not a multiple of one (a BAR of 256 bytes): there the kernel maps the whole page.
    pub fn mappable(&self, page: u64) -> Vec<Range<u64>> {
        if !self.flags.contains(RegionFlags::MMAP) || page == 0 {
            return Vec::new();
        }
        let whole = std::iter::once(0..self.size).filter(|_| self.areas.is_none());
        let areas = whole.chain(self.areas.iter().flatten().cloned());
        let inside = areas.filter_map(|area| {
            let start = area.start.checked_next_multiple_of(page)?;
            let end = if area.end >= self.size { self.size } else { area.end / page * page };
            (start < end).then_some(start..end)
        });
        let mut parts: Vec<_> = inside.collect();
        parts.sort_by_key(|part| part.start);
        parts.dedup_by(|next, before| {
            let touch = next.start <= before.end;
            if touch {
                before.end = before.end.max(next.end);
            }
            touch
        });
        parts
    }
}

/// The list of a `VFIO_REGION_INFO_CAP_SPARSE_MMAP` at `at`, in a region of `size` bytes.
fn areas(reply: &Reply<'_>, at: usize, size: u64) -> Result<Vec<Range<u64>>, VfioError> {
    let count = reply.u32(at + HEADER)? as usize;
    let listed = count.checked_mul(AREAS).and_then(|len| len.checked_add(at + AREAS));
    if listed.is_none_or(|end| end > reply.len()) {
        return Err(reply.wrong("its list of areas is longer than itself"));
    }
    let areas = (0..count).map(|i| {
        let at = at + AREAS + i * AREAS;
        let (start, len) = (reply.u64(at)?, reply.u64(at + 8)?);
        let end = start.checked_add(len).filter(|end| *end <= size);
        end.map(|end| start..end).ok_or_else(|| reply.wrong("an area is not inside the region"))
    });
    areas.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A reply with these capabilities: (id, the bytes after the header).
    fn reply(size: u64, flags: u32, capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut reply = Vec::new();
        let total = INFO + capabilities.iter().map(|(_, body)| HEADER + body.len()).sum::<usize>();
        let mut at = u32::try_from(INFO).expect("small");
        for word in [u32::try_from(total).expect("small"), flags, 0, if capabilities.is_empty() { 0 } else { at }] {
            reply.extend(word.to_ne_bytes());
        }
        reply.extend(size.to_ne_bytes());
        reply.extend((2_u64 << 40).to_ne_bytes());
        for (i, (id, body)) in capabilities.iter().enumerate() {
            at += u32::try_from(HEADER + body.len()).expect("small");
            reply.extend(id.to_ne_bytes());
            reply.extend(1_u16.to_ne_bytes());
            reply.extend((if i + 1 < capabilities.len() { at } else { 0 }).to_ne_bytes());
            reply.extend(body);
        }
        reply
    }

    fn sparse(areas: &[Range<u64>]) -> (u16, Vec<u8>) {
        let mut body = Vec::new();
        body.extend(u32::try_from(areas.len()).expect("few").to_ne_bytes());
        body.extend(0_u32.to_ne_bytes());
        for area in areas {
            body.extend(area.start.to_ne_bytes());
            body.extend((area.end - area.start).to_ne_bytes());
        }
        (SPARSE_MMAP, body)
    }

    const ALL: u32 = 0xf;

    #[test]
    fn areas_are_found_behind_other_capabilities() {
        let list = [0x3000..0x5000, 0..0x1000];
        let info = RegionInfo::parse(&reply(0x8000, ALL, &[(3, vec![]), (9, vec![7; 5]), sparse(&list)]));
        let info = info.expect("a reply");
        assert_eq!((info.size(), info.offset()), (0x8000, 2 << 40));
        assert_eq!(info.mappable(4096), [0..0x1000, 0x3000..0x5000]);
        assert_eq!(info.mappable(0x4000), [] as [Range<u64>; 0]);
    }

    #[test]
    fn without_areas_it_is_mapped_as_a_whole_or_not_at_all() {
        let whole = RegionInfo::parse(&reply(256, ALL, &[])).expect("a reply");
        assert_eq!(whole.mappable(4096), std::iter::once(0..256).collect::<Vec<_>>());
        let none = RegionInfo::parse(&reply(0x8000, 0b1011, &[])).expect("a reply");
        assert_eq!(none.mappable(4096), [] as [Range<u64>; 0]);
        let empty = RegionInfo::parse(&reply(0, ALL, &[])).expect("a reply");
        assert_eq!(empty.mappable(4096), [] as [Range<u64>; 0]);
    }

    #[test]
    fn what_contradicts_is_an_error() {
        let good = reply(0x8000, ALL, &[(3, vec![]), sparse(std::slice::from_ref(&(0..0x1000)))]);
        let bad = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut reply = good.clone();
            change(&mut reply);
            let parsed = RegionInfo::parse(&reply);
            assert!(matches!(parsed, Err(VfioError::Reply { .. })), "{parsed:?}");
        };
        let put =
            |at: usize, value: u32| move |reply: &mut Vec<u8>| reply[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        bad(&|reply| reply.truncate(31));
        bad(&|reply| reply.truncate(good.len() - 1));
        bad(&put(0, 31));
        bad(&put(12, 8)); // into the structure itself
        bad(&put(12, u32::MAX));
        bad(&put(INFO + 4, 32)); // to itself
        bad(&put(INFO + HEADER + 4, 33)); // back
        bad(&put(INFO + HEADER + HEADER, u32::MAX)); // areas
        bad(&put(INFO + HEADER + HEADER, 2));
        bad(&put(INFO + HEADER + AREAS + 8, 0x8001)); // an area's length
        bad(&|reply| reply[INFO + HEADER + AREAS..][..8].fill(0xff));
        bad(&|reply| reply[16..24].fill(0xff)); // the region's size
        bad(&|reply| reply[24..32].fill(0xff)); // its offset
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 20 } else { 2000 }, failure_persistence: None, ..ProptestConfig::default() })]

        /// Any bytes give an error, or a region whose parts are inside of it, whole pages, in order and apart.
        #[test]
        fn nothing_in_a_reply_is_trusted(
            mut bytes in prop::collection::vec(any::<u8>(), 0..160),
            plausible in any::<bool>(),
            fields in prop::collection::vec((0_usize..40, 0_u32..200), 0..12),
            page in prop::sample::select(vec![1_u64, 4096, 65536]),
        ) {
            if plausible {
                // Most random numbers end at the first check.
                bytes.resize(160, 0);
                bytes.fill(0);
                bytes[..8].copy_from_slice(&[160, 0, 0, 0, 0xf, 0, 0, 0]);
                bytes[12] = 32;
                bytes[18] = 1;
                for (word, value) in fields {
                    bytes[word * 4..][..4].copy_from_slice(&value.to_ne_bytes());
                }
            }
            if let Ok(info) = RegionInfo::parse(&bytes) {
                prop_assert!(info.offset().checked_add(info.size()).is_some_and(|end| end <= i64::MAX as u64));
                let parts = info.mappable(page);
                for part in &parts {
                    prop_assert!(part.start < part.end && part.end <= info.size() && part.start % page == 0);
                    prop_assert!(part.end % page == 0 || part.end == info.size());
                }
                for pair in parts.windows(2) {
                    prop_assert!(pair[0].end < pair[1].start);
                }
            }
        }

        /// A page is in the parts exactly if the areas have all of its bytes, except a last page that is not whole.
        #[test]
        fn the_parts_are_the_whole_pages_of_the_areas(
            pages in 1_u64..12,
            more in 0_u64..4096,
            list in prop::collection::vec((0_u64..50_000, 0_u64..30_000), 0..5),
        ) {
            let size = pages * 4096 + more;
            let areas: Vec<_> = list.iter().map(|(at, len)| *at.min(&size)..(at + len).min(size)).collect();
            let info = RegionInfo::parse(&reply(size, ALL, &[sparse(&areas)])).expect("a reply");
            let parts = info.mappable(4096);
            for page in 0..pages {
                let page = page * 4096..(page + 1) * 4096;
                let has = |area: &Range<u64>| area.start <= page.start && page.end <= area.end;
                let listed = areas.iter().any(has);
                let part = parts.iter().any(has);
                // Areas that touch inside of a page do not make it whole.
                prop_assert_eq!(part, listed, "page {:x?} of {:x?}: {:x?}", page, areas, parts);
            }
        }
    }
}
