//! The types of single accesses: the machine's own integers and floats, without padding or invalid values.

/// A type that one load or store can move: the integers of 1 to 8 bytes, `f32` and `f64`.
///
/// Every bit pattern is a valid value, because a device may give any. The trait is sealed: an access has to be one
/// instruction, and only these types have one.
///
/// ```
/// use revocable_mmio::{AccessError, Mapping, Primitive};
///
/// /// A device that is gone reads as all-ones.
/// fn read_or_ones<T: Primitive>(bar: &Mapping, offset: usize) -> T {
///     bar.read(offset).unwrap_or(T::ALL_ONES)
/// }
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
/// assert_eq!(read_or_ones::<u16>(&mapping, 0), 0);
/// region.disable()?;
/// assert_eq!(read_or_ones::<u16>(&mapping, 0), 0xffff);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Primitive: sealed::Bits + Copy + Send + Sync + 'static {
    /// The size in bytes: 1, 2, 4 or 8. It is also the alignment that an access needs, on every target.
    const SIZE: usize = size_of::<Self>();

    /// Every bit set, which a bus gives for a device that is not there.
    const ALL_ONES: Self;
}

/// A primitive with atomic read-modify-write operations: the integers.
///
/// ```
/// use revocable_mmio::{AccessError, AtomicPrimitive, Mapping};
///
/// fn set_bits<T: AtomicPrimitive>(bar: &Mapping, offset: usize, bits: T) -> Result<T, AccessError> {
///     bar.fetch_or(offset, bits)
/// }
/// # let region = revocable_mmio::Region::builder(64 << 10).build()?;
/// # let mapping = region.map(revocable_mmio::MapOptions::new())?;
/// assert_eq!(set_bits(&mapping, 0, 0b100_u32)?, 0);
/// assert_eq!(set_bits(&mapping, 0, 0b001_u32)?, 0b100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait AtomicPrimitive: Primitive + Eq {}

pub(crate) mod sealed {
    /// Conversion to and from the low bits of a register.
    pub trait Bits {
        /// The value's bits, zero-extended.
        fn to_bits(self) -> u64;
        /// The value in the low bits; the higher ones are ignored.
        fn from_bits(bits: u64) -> Self;
    }
}

macro_rules! integers {
    ($($ty:ty as $unsigned:ty),*) => { $(
        impl sealed::Bits for $ty {
            #[inline(always)]
            fn to_bits(self) -> u64 {
                // Through the unsigned type of the same size, or the sign would be extended.
                self as $unsigned as u64
            }

            #[inline(always)]
            #[expect(clippy::cast_possible_truncation, reason = "the higher bits are to be ignored")]
            fn from_bits(bits: u64) -> Self {
                bits as $ty
            }
        }

        impl Primitive for $ty {
            const ALL_ONES: Self = !0;
        }

        impl AtomicPrimitive for $ty {}
    )* };
}

integers!(u8 as u8, u16 as u16, u32 as u32, usize as usize);
integers!(i8 as u8, i16 as u16, i32 as u32, isize as usize);

macro_rules! wide {
    ($($ty:ty),*) => { $(
        impl sealed::Bits for $ty {
            #[inline(always)]
            fn to_bits(self) -> u64 {
                self as u64
            }

            #[inline(always)]
            fn from_bits(bits: u64) -> Self {
                bits as $ty
            }
        }

        impl Primitive for $ty {
            const ALL_ONES: Self = !0;
        }

        impl AtomicPrimitive for $ty {}
    )* };
}

wide!(u64, i64);

impl sealed::Bits for f32 {
    #[inline(always)]
    fn to_bits(self) -> u64 {
        self.to_bits().into()
    }

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self::from_bits(<u32 as sealed::Bits>::from_bits(bits))
    }
}

impl Primitive for f32 {
    const ALL_ONES: Self = Self::from_bits(!0);
}

impl sealed::Bits for f64 {
    #[inline(always)]
    fn to_bits(self) -> u64 {
        self.to_bits()
    }

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self::from_bits(bits)
    }
}

impl Primitive for f64 {
    const ALL_ONES: Self = Self::from_bits(!0);
}

#[cfg(test)]
mod tests {
    use super::Primitive;
    use super::sealed::Bits;

    #[test]
    fn bits_are_zero_extended_and_high_bits_ignored() {
        assert_eq!((-1i8).to_bits(), 0xff);
        assert_eq!(isize::MIN.to_bits(), 1 << (usize::BITS - 1));
        assert_eq!(<i16 as Bits>::from_bits(0xdead_8001), i16::MIN + 1);
        assert_eq!(Bits::to_bits(-0.0f32), 0x8000_0000);
        assert_eq!(Bits::to_bits(f64::ALL_ONES), u64::MAX);
        assert_eq!(Bits::to_bits(f32::ALL_ONES), 0xffff_ffff);
        assert_eq!(u16::SIZE, 2);
    }
}
