//! Random operations against the set of objects that clients hold.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Alloc {
        cpu: usize,
        n: usize,
    },
    Free {
        cpu: usize,
        pick: usize,
        n: usize,
    },
    AllocNode {
        node: usize,
    },
    Shrink,
    /// The next constructors: so many succeed, then one fails.
    Fuse(usize),
    /// So many allocations while no page is free.
    Hog {
        cpu: usize,
        n: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let cpu = 0..NR_CPUS;
    prop_oneof![
        8 => (cpu.clone(), 1..20usize).prop_map(|(cpu, n)| Op::Alloc { cpu, n }),
        8 => (cpu.clone(), any::<usize>(), 1..20usize)
            .prop_map(|(cpu, pick, n)| Op::Free { cpu, pick, n }),
        2 => (0..NR_NODES).prop_map(|node| Op::AllocNode { node }),
        1 => Just(Op::Shrink),
        1 => (0..20usize).prop_map(Op::Fuse),
        1 => (cpu, 1..40usize).prop_map(|(cpu, n)| Op::Hog { cpu, n }),
    ]
}

#[derive(Clone, Debug)]
struct Shape {
    size: usize,
    align: usize,
    with_ctor: bool,
    flags: CacheFlags,
}

fn shape() -> impl Strategy<Value = Shape> {
    // Slabs of few objects and sheaves of 4 and 12 pointers: edges are near.
    let size = prop_oneof![2 => Just(4096usize), 2 => 1000..1100usize, 1 => 8..600usize, 1 => Just(8192usize)];
    let flags = prop_oneof![
        4 => Just(CacheFlags::empty()),
        1 => Just(CacheFlags::HWCACHE_ALIGN),
        1 => Just(CacheFlags::NO_SHEAVES),
        1 => Just(CacheFlags::TYPESAFE_BY_RCU),
    ];
    (
        size,
        prop_oneof![Just(8usize), Just(64), Just(1)],
        any::<bool>(),
        flags,
    )
        .prop_map(|(size, align, with_ctor, flags)| Shape {
            size,
            align,
            with_ctor,
            flags,
        })
}

struct World {
    cache: &'static KmemCache,
    shape: Shape,
    /// Live objects and what is written in them.
    held: Vec<(NonNull<u8>, u8)>,
    next: u8,
}

impl World {
    fn new(shape: Shape) -> Self {
        let (c, d): (Option<Ctor>, Option<Dtor>) = if shape.with_ctor {
            (Some(ctor), Some(dtor))
        } else {
            (None, None)
        };
        let cache = KmemCache::create("model", shape.size, shape.align, c, d, shape.flags).unwrap();
        World {
            cache,
            shape,
            held: Vec::new(),
            next: 1,
        }
    }

    /// The client's bytes: a constructed object keeps its first word.
    fn bytes(&self, object: NonNull<u8>) -> &'static mut [u8] {
        let skip = if self.shape.with_ctor { 8 } else { 0 };
        // SAFETY: a live object of that size.
        unsafe { std::slice::from_raw_parts_mut(object.as_ptr().add(skip), self.shape.size - skip) }
    }

    fn take(&mut self, object: NonNull<u8>) {
        assert!((object.as_ptr() as usize).is_multiple_of(self.shape.align));
        if self.shape.with_ctor {
            // SAFETY: a live object.
            assert_eq!(unsafe { object.cast::<u64>().read() }, MAGIC);
        }
        self.bytes(object).fill(self.next);
        self.held.push((object, self.next));
        self.next = self.next.wrapping_add(1);
    }

    fn give(&mut self, pick: usize) {
        let (object, byte) = self.held.swap_remove(pick % self.held.len());
        // Nobody else was given the memory meanwhile.
        assert!(self.bytes(object).iter().all(|&b| b == byte));
        give_back(self.cache, object);
    }

    fn alloc(&mut self, n: usize, may_fail: bool) {
        for _ in 0..n {
            match take(self.cache) {
                Ok(object) => self.take(object),
                Err(AllocError) => {
                    assert!(may_fail || self.shape.with_ctor);
                    set_fuse(usize::MAX);
                }
            }
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Alloc { cpu, n } => on(cpu, || self.alloc(n, false)),
            Op::Free { cpu, pick, n } => on(cpu, || {
                for i in 0..n.min(self.held.len()) {
                    self.give(pick.wrapping_add(i * 7));
                }
            }),
            Op::AllocNode { node } => {
                if let Ok(object) = self.cache.alloc_node(node, Gfp::empty()) {
                    // A constructor that fails on that node may have succeeded on another before.
                    assert!(node_of(object) == node || self.shape.with_ctor);
                    self.take(object);
                }
            }
            Op::Shrink => {
                self.cache.shrink();
                assert_eq!(self.cache.stats().cached, 0);
            }
            Op::Fuse(n) => set_fuse(n),
            Op::Hog { cpu, n } => {
                let _hog = Hog::new();
                on(cpu, || self.alloc(n, true));
            }
        }
        let stats = self.cache.stats();
        assert_eq!(stats.active, self.held.len());
        assert!(stats.total >= stats.active + stats.cached);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn a_cache_is_a_set_of_objects(shape in shape(), ops in prop::collection::vec(op(), 1..60)) {
        let _machine = machine();
        let before = free_pages();
        let mut world = World::new(shape);
        for op in ops {
            world.apply(op);
        }
        let mut live = Vec::new();
        world.cache.for_each_live(|object| live.push(object));
        let mut held: Vec<_> = world.held.iter().map(|h| h.0).collect();
        live.sort();
        held.sort();
        prop_assert_eq!(&live, &held);
        if !held.is_empty() {
            prop_assert_eq!(destroy(world.cache), Err(DestroyError::Busy(held.len())));
        }
        while !world.held.is_empty() {
            world.give(0);
        }
        prop_assert_eq!(destroy(world.cache), Ok(()));
        prop_assert_eq!(nr_built(), 0);
        prop_assert_eq!(free_pages(), before);
    }
}
