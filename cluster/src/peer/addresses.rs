//! Where nodes are.

use std::collections::BTreeMap;

use crate::NodeId;

/// The directory's addresses, overlaid by what nodes have announced since.
#[derive(Debug, Default)]
pub(super) struct AddressBook {
    directory: BTreeMap<NodeId, String>,
    announced: BTreeMap<NodeId, String>,
}

impl AddressBook {
    /// The directory's addresses; what a node announced is forgotten when the directory says something new of it.
    pub(super) fn set_directory(&mut self, addresses: BTreeMap<NodeId, String>) {
        self.announced.retain(|node, _| self.directory.get(node) == addresses.get(node));
        self.directory = addresses;
    }

    pub(super) fn announce(&mut self, node: NodeId, address: String) {
        self.announced.insert(node, address);
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&str> {
        self.announced.get(&node).or_else(|| self.directory.get(&node)).map(String::as_str)
    }

    pub(super) fn all(&self) -> BTreeMap<NodeId, String> {
        let mut all = self.directory.clone();
        all.extend(self.announced.clone());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses<const N: usize>(nodes: [(NodeId, &str); N]) -> BTreeMap<NodeId, String> {
        nodes.map(|(node, address)| (node, address.to_owned())).into()
    }

    #[test]
    fn what_a_node_announces_wins_until_the_directory_says_something_new_of_it() {
        let mut book = AddressBook::default();
        book.set_directory(addresses([(1, "a:1"), (2, "b:1")]));
        book.announce(2, "b:2".into());
        book.announce(3, "c:1".into());
        assert_eq!(book.all(), addresses([(1, "a:1"), (2, "b:2"), (3, "c:1")]));
        book.set_directory(addresses([(1, "a:9"), (2, "b:1")]));
        assert_eq!(book.all(), addresses([(1, "a:9"), (2, "b:2"), (3, "c:1")]), "nothing new of 2 and 3");
        book.set_directory(addresses([(1, "a:9"), (2, "b:3"), (3, "c:2")]));
        assert_eq!(book.all(), addresses([(1, "a:9"), (2, "b:3"), (3, "c:2")]));
        book.set_directory(addresses([(1, "a:9")]));
        assert_eq!(book.all(), addresses([(1, "a:9")]), "the others are no nodes any more");
        assert_eq!((book.get(1), book.get(2)), (Some("a:9"), None));
    }
}
