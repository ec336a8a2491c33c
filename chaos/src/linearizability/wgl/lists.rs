//! Doubly linked lists whose elements are removed and put back in constant time (Knuth's dancing links).

/// Lists that the positions 0..n are divided into, each in ascending order.
pub(super) struct Lists {
    /// (previous, next) of each position, and after these of each list's ends.
    links: Vec<(usize, usize)>,
    positions: usize,
}

impl Lists {
    /// `list_of`: for each position the number of its list, below `lists`.
    pub(super) fn new(lists: usize, list_of: impl ExactSizeIterator<Item = usize>) -> Self {
        let positions = list_of.len();
        let mut links: Vec<(usize, usize)> = (0..positions + lists).map(|at| (at, at)).collect();
        for (at, list) in list_of.enumerate() {
            let end = positions + list;
            let last = links[end].0;
            links[at] = (last, end);
            links[last].1 = at;
            links[end].0 = at;
        }
        Self { links, positions }
    }

    /// The first one of a list; if it is empty, a number above all positions.
    pub(super) fn first(&self, list: usize) -> usize {
        self.next(self.positions + list)
    }

    /// The one after it in its list, also if it is not there; after the last one a number above all positions.
    pub(super) fn next(&self, at: usize) -> usize {
        self.links[at].1
    }

    pub(super) fn remove(&mut self, at: usize) {
        let (previous, next) = self.links[at];
        self.links[previous].1 = next;
        self.links[next].0 = previous;
    }

    /// What was removed last is put back first.
    pub(super) fn put_back(&mut self, at: usize) {
        let (previous, next) = self.links[at];
        self.links[previous].1 = at;
        self.links[next].0 = at;
    }
}
