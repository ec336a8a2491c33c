//! The best choice in hindsight.

use crate::trace::Row;

/// Value of the best rows for the budget: fractional knapsack by value per price, free rows first.
pub(super) fn value(rows: &[Row], budget_micros: f64) -> f64 {
    let worth = |r: &Row| if r.price_micros == 0 { f64::INFINITY } else { r.pctr / r.price_micros as f64 };
    let mut best: Vec<&Row> = rows.iter().collect();
    best.sort_by(|a, b| worth(b).total_cmp(&worth(a)));
    let (mut left, mut value) = (budget_micros, 0.0);
    for row in best {
        let price = row.price_micros as f64;
        if price > left {
            return value + row.pctr * left / price;
        }
        left -= price;
        value += row.pctr;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(price_micros: u64, pctr: f64) -> Row {
        Row { index: 0, click: false, price_micros, pctr, hour: None }
    }

    #[test]
    fn it_takes_the_best_value_per_price_and_a_fraction_of_the_last() {
        let rows = [row(10, 1.0), row(10, 3.0), row(20, 4.0), row(0, 0.5)];
        assert_eq!(value(&rows, 20.0), 0.5 + 3.0 + 2.0);
        assert_eq!(value(&rows, 1000.0), 8.5);
        assert_eq!(value(&rows, 0.0), 0.5);
    }
}
