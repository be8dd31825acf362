//! Whether guidance's two predictions are computed by the same ranks or by two branches of them.

use protocol::job::CfgSplit;
use protocol::plan::{Branch, RANKS_MAX};

/// How many ranks compute what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sharing {
    /// The branches, in rank order.
    pub(super) parts: Vec<Part>,
    /// Why it is this one.
    pub(super) reason: String,
}

/// The ranks of one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) branch: Branch,
    pub(super) ranks: usize,
}

/// The most ranks that can have a part in an image of `units` row units.
pub(super) fn ranks_max(units: usize, guided: bool, wish: CfgSplit) -> usize {
    let branches = if guided && wish != CfgSplit::Off { 2 } else { 1 };
    units.saturating_mul(branches).min(RANKS_MAX)
}

/// How `ranks` ranks share an image of `units` row units.
///
/// Two branches exchange nothing but predictions, and each rank's bands are twice as tall as those
/// of one: as fast to compute, fewer bytes. An odd rank more breaks the balance: the smaller branch
/// decides, and so one branch of all ranks is faster as long as there are rows for all.
pub(super) fn share(
    ranks: usize,
    units: usize,
    guided: bool,
    wish: CfgSplit,
) -> Result<Sharing, String> {
    let whole = |reason: String| Sharing { parts: vec![part(Branch::Whole, ranks)], reason };
    match wish {
        CfgSplit::On if !guided => Err("--cfg-split on needs a guidance scale above 1: without \
             guidance there is one prediction only"
            .to_owned()),
        CfgSplit::On if ranks < 2 => {
            Err("--cfg-split on needs two workers or more; there is one".to_owned())
        }
        CfgSplit::Auto if !guided => {
            Ok(whole("without guidance there is one prediction to share".to_owned()))
        }
        CfgSplit::Auto if ranks < 2 => Ok(whole("one worker renders it alone".to_owned())),
        CfgSplit::Off => Ok(whole("--cfg-split off was asked for".to_owned())),
        CfgSplit::Auto if ranks % 2 == 1 && ranks <= units => Ok(whole(format!(
            "{ranks} workers are odd: as two branches the smaller would take {:.2} times as long \
             as {ranks} bands of both predictions do",
            relative(ranks)
        ))),
        CfgSplit::On => Ok(split(ranks, "--cfg-split on was asked for".to_owned())),
        CfgSplit::Auto => {
            Ok(split(ranks, "only predictions cross between the two branches".to_owned()))
        }
    }
}

fn part(branch: Branch, ranks: usize) -> Part {
    Part { branch, ranks }
}

fn split(ranks: usize, reason: String) -> Sharing {
    let fewer = ranks / 2;
    let parts = vec![part(Branch::Negative, fewer), part(Branch::Prompt, ranks - fewer)];
    Sharing { parts, reason }
}

/// Time of two branches over that of one, computing alone: 1 / (n / 2), rounded down, over 2 / n.
#[expect(clippy::cast_precision_loss, reason = "there are at most 64 ranks")]
fn relative(ranks: usize) -> f64 {
    ranks as f64 / (2 * (ranks / 2)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(ranks: usize, units: usize, guided: bool, wish: CfgSplit) -> Vec<usize> {
        let sharing = share(ranks, units, guided, wish).unwrap();
        sharing.parts.iter().map(|part| part.ranks).collect()
    }

    #[test]
    fn even_ranks_split_and_odd_ones_do_not() {
        assert_eq!(sizes(1, 8, true, CfgSplit::Auto), [1]);
        assert_eq!(sizes(2, 8, true, CfgSplit::Auto), [1, 1]);
        assert_eq!(sizes(3, 8, true, CfgSplit::Auto), [3]);
        assert_eq!(sizes(4, 8, true, CfgSplit::Auto), [2, 2]);
        assert_eq!(sizes(4, 8, false, CfgSplit::Auto), [4]);
        assert_eq!(sizes(4, 8, true, CfgSplit::Off), [4]);
        assert_eq!(sizes(5, 8, true, CfgSplit::On), [2, 3]);
    }

    #[test]
    fn odd_ranks_split_where_there_are_too_few_rows_for_all() {
        assert_eq!(sizes(5, 4, true, CfgSplit::Auto), [2, 3]);
    }

    #[test]
    fn what_cannot_be_split_is_refused() {
        assert!(share(2, 8, false, CfgSplit::On).unwrap_err().contains("guidance"));
        assert!(share(1, 8, true, CfgSplit::On).unwrap_err().contains("two workers"));
    }
}
