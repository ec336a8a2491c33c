//! When the cluster may propose newer commands.

/// The feature level to raise to, if every node knows more than the cluster's.
pub fn raise(level: u32, nodes: impl IntoIterator<Item = u32>) -> Option<u32> {
    nodes.into_iter().min().filter(|known| *known > level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_raised_to_what_every_node_knows() {
        let table: [(u32, &[u32], Option<u32>); 6] = [
            (1, &[1], None),
            (1, &[3], Some(3)),
            (1, &[3, 2, 4], Some(2)),
            (2, &[3, 2, 4], None),
            (3, &[3, 2], None),
            (1, &[], None),
        ];
        for (level, nodes, expected) in table {
            assert_eq!(raise(level, nodes.iter().copied()), expected, "{level} {nodes:?}");
        }
    }
}
