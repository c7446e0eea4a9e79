//! The raw accesses, for this crate's own tests and for the checks of its generated code. Not part of the interface.
#![expect(unsafe_code, reason = "forwards to the raw accesses, whose contract is theirs")]
// UNSAFETY: forwards `access::raw`.

use crate::access::primitive::{AtomicPrimitive, Primitive};
use crate::access::raw;

pub const RECOVERABLE: bool = raw::RECOVERABLE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faulted;

impl From<raw::Faulted> for Faulted {
    #[inline(always)]
    fn from(_: raw::Faulted) -> Self {
        Self
    }
}

macro_rules! forward {
    ($($name:ident<$bound:ident>($($arg:ident: $ty:ty),*) -> $ret:ty;)*) => { $(
        #[inline(always)]
        pub unsafe fn $name<T: $bound>($($arg: $ty),*) -> Result<$ret, Faulted> {
            // SAFETY: handed on.
            Ok(unsafe { raw::$name($($arg),*) }?)
        }
    )* };
}

forward! {
    load<Primitive>(p: *const T) -> T;
    store<Primitive>(p: *mut T, value: T) -> ();
    compare_exchange<AtomicPrimitive>(p: *mut T, old: T, new: T) -> Result<T, T>;
    swap<AtomicPrimitive>(p: *mut T, value: T) -> T;
    fetch_add<AtomicPrimitive>(p: *mut T, value: T) -> T;
    fetch_or<AtomicPrimitive>(p: *mut T, value: T) -> T;
    fetch_and<AtomicPrimitive>(p: *mut T, value: T) -> T;
    fetch_xor<AtomicPrimitive>(p: *mut T, value: T) -> T;
}

pub unsafe fn copy_out(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: handed on.
    unsafe { raw::copy_out(dst, src, len) }
}

pub unsafe fn copy_in(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: handed on.
    unsafe { raw::copy_in(dst, src, len) }
}

pub unsafe fn fill(dst: *mut u8, byte: u8, len: usize) -> usize {
    // SAFETY: handed on.
    unsafe { raw::fill(dst, byte, len) }
}
