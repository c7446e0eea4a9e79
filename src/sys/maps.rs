//! The text of /proc/self/maps (proc_pid_maps(5)): what stands at which addresses, and with which rights.
//!
//! Read as bytes: the files that others map have whatever names they like, not only UTF-8.

use super::map::Prot;
use super::{AddrRange, SysError, may_fail};
use nix::errno::Errno;

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    pub(crate) range: AddrRange,
    pub(crate) prot: Prot,
    /// Where in its file it starts, in bytes.
    pub(crate) offset: u64,
    /// Device and inode.
    pub(crate) file: (&'a str, &'a str),
}

/// The file of a mapping that has none.
pub(crate) const NO_FILE: (&str, &str) = ("00:00", "0");

/// All of the text.
pub(crate) fn read() -> Result<Vec<u8>, SysError> {
    const OPEN: &str = "open(/proc/self/maps)";
    may_fail(OPEN)?;
    std::fs::read("/proc/self/maps").map_err(|e| SysError::new(OPEN, Errno::from_raw(e.raw_os_error().unwrap_or(0))))
}

/// The lines of a text; what is none is passed over.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    text.split(|byte| *byte == b'\n').filter_map(parse)
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    // The name comes last, and is of no interest here.
    let mut fields = line.split(|byte| *byte == b' ').filter_map(|field| std::str::from_utf8(field).ok());
    let hex = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (hex(start)?, hex(end)?);
    let prot = match fields.next()?.as_bytes() {
        [_, b'w', _, _] => Prot::ReadWrite,
        [b'r', _, _, _] => Prot::Read,
        [_, _, _, _] => Prot::None,
        _ => return None,
    };
    let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
    let file = (fields.next()?, fields.next()?);
    Some(Line { range: AddrRange::new(start, end.checked_sub(start)?), prot, offset, file })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LINE: &[u8] = b"7f00a000-7f00c000 r--s 00003000 00:01 4711   /memfd:a name (deleted)";

    #[test]
    fn a_line_of_proc_maps_is_understood() {
        let line = parse(LINE).unwrap();
        assert_eq!(line.range, AddrRange::new(0x7f00_a000, 0x2000));
        assert_eq!((line.prot, line.offset, line.file), (Prot::Read, 0x3000, ("00:01", "4711")));
    }

    #[test]
    fn a_name_that_is_no_text_hides_neither_its_own_line_nor_those_behind_it() {
        let mut text = b"1000-2000 rw-s 00000000 00:01 1    /tmp/\xff\xfe \xe4\n".to_vec();
        text.extend_from_slice(LINE);
        let starts: Vec<_> = lines(&text).map(|line| line.range.addr).collect();
        assert_eq!(starts, [0x1000, 0x7f00_a000]);
    }

    #[test]
    fn this_process_is_understood_line_by_line() {
        let text = read().expect("there is /proc");
        let count = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        assert_eq!(lines(&text).count(), count);
        let here = std::ptr::from_ref(&count).addr();
        let stack: Vec<_> = lines(&text).filter(|line| line.range.contains(here)).collect();
        assert!(matches!(&stack[..], [Line { prot: Prot::ReadWrite, .. }]), "{stack:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_line_that_the_kernel_may_write_is_understood(
            start in 0usize..usize::MAX / 2, len in 0usize..usize::MAX / 2, rights in 0usize..16, offset: u64,
            device in "[0-9a-f]{2,5}:[0-9a-f]{2,5}", inode: u64, name: Vec<u8>,
        ) {
            let bit = |bit: usize, yes: char| if rights >> bit & 1 == 1 { yes } else { '-' };
            let (end, private) = (start + len, if rights & 8 == 0 { 's' } else { 'p' });
            let (r, w, x) = (bit(0, 'r'), bit(1, 'w'), bit(2, 'x'));
            let mut text = format!("{start:08x}-{end:08x} {r}{w}{x}{private} {offset:08x} {device} {inode} ").into_bytes();
            // A line break in a name is written as `\012` (seq_file_path).
            text.extend(name.iter().filter(|byte| **byte != b'\n'));
            let inode = inode.to_string();
            let prot = match rights & 3 {
                0 => Prot::None,
                1 => Prot::Read,
                _ => Prot::ReadWrite,
            };
            let file = (&*device, &*inode);
            let line = Line { range: AddrRange::new(start, len), prot, offset, file };
            prop_assert_eq!(lines(&text).collect::<Vec<_>>(), [line]);
        }

        #[test]
        fn no_text_upsets_the_reader(bytes: Vec<u8>, cut in 0usize..80, at in 0usize..80, other: u8) {
            for line in lines(&bytes) {
                prop_assert!(line.range.end() >= line.range.addr);
            }
            // Nearly right is the more dangerous kind of wrong.
            let mut nearly = LINE[..LINE.len() - cut.min(LINE.len())].to_vec();
            if let Some(byte) = nearly.get_mut(at) {
                *byte = other;
            }
            for line in lines(&nearly) {
                prop_assert!(line.range.end() >= line.range.addr);
            }
        }
    }
}
