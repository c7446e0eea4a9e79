//! Copies that are not allowed, or are of no bytes: not a byte is copied.

use crate::support;
use revocable_mmio::{AccessError, CopyError, MapOptions, Region};

const PAGE: usize = 4096;

#[test]
fn a_copy_that_ends_one_byte_beyond_the_mapping_copies_nothing() {
    support::start();
    let region = Region::builder(4 * PAGE).build().expect("a region");
    let mapping = region.map(MapOptions::new().offset(PAGE).len(PAGE)).expect("a mapping");
    for enabled in [true, false] {
        if !enabled {
            region.disable().expect("disable");
        }
        // Around the lengths of which each is copied in its own way.
        for size in [1, 8, 9, 63, 64, 65, 128, 129, 256, 257, 1024, PAGE + 1] {
            let offset = PAGE + 1 - size;
            let refused = Err(CopyError { done: 0, error: AccessError::OutOfBounds { offset, size, len: PAGE } });
            let mut buffer = vec![0x77; size];
            assert_eq!(mapping.write_slice(offset, &buffer), refused);
            assert_eq!(mapping.fill(offset, 0x77, size), refused);
            assert_eq!(mapping.read_slice(offset, &mut buffer), refused);
            assert!(buffer.iter().all(|byte| *byte == 0x77), "{size} bytes: some were loaded");
        }
    }
    let mut all = [0xff; 4 * PAGE];
    region.owner().read_slice(0, &mut all).expect("the owner's view");
    assert!(all.iter().all(|byte| *byte == 0), "some were stored");
}

#[test]
fn a_copy_of_no_bytes_is_refused_where_none_could_be_copied_in_any_state() {
    support::start();
    let region = Region::builder(4 * PAGE).build().expect("a region");
    let mapping = region.map(MapOptions::new().offset(PAGE).len(PAGE)).expect("a mapping");
    let loads = region.map(MapOptions::new().offset(PAGE).len(PAGE).read_only()).expect("a mapping");
    for enabled in [true, false] {
        if !enabled {
            region.disable().expect("disable");
        }
        for offset in [0, 1, PAGE - 1, PAGE] {
            assert_eq!(mapping.read_slice(offset, &mut []), Ok(()));
            assert_eq!(mapping.write_slice(offset, &[]), Ok(()));
            assert_eq!(mapping.fill(offset, 1, 0), Ok(()));
            let refused = Err(CopyError { done: 0, error: AccessError::ReadOnly { offset } });
            assert_eq!(loads.read_slice(offset, &mut []), Ok(()));
            assert_eq!(loads.write_slice(offset, &[]), refused);
            assert_eq!(loads.fill(offset, 1, 0), refused);
        }
        for offset in [PAGE + 1, 2 * PAGE, isize::MAX as usize, usize::MAX] {
            let error = AccessError::OutOfBounds { offset, size: 0, len: PAGE };
            let refused = Err(CopyError { done: 0, error });
            assert_eq!(mapping.read_slice(offset, &mut []), refused);
            assert_eq!(mapping.write_slice(offset, &[]), refused);
            assert_eq!(loads.write_slice(offset, &[]), refused);
        }
    }
}
