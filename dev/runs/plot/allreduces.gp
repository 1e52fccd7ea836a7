# Validation loss at the end against all-reduces per forward pass. Called by dev/runs/plot.sh with
# data, title, note, and patterns with their colours and points. A pattern is drawn a little beside
# its count where others share it; counts up to 48 on a logarithmic scale. Names of more than seven
# characters stand in the key only.
n = words(patterns)
set title title."\n".note.'; lower is better' font ',15'
set grid lc rgb '#cccccc' lw 0.7 dt 1
set border 3 lc rgb '#444444'
set tics nomirror
stats data using 1 nooutput
most = STATS_max
x(merges, beside) = most > 12 ? merges * 1.07 ** beside : merges + 0.24 * beside
if (most > 12) {
    set logscale x 2
    set xrange [0.85:most * 1.2]
    set xtics (1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 36, 48)
} else {
    set xrange [0:most + 0.6]
    set xtics 1
}
stats data using 4 nooutput
span = STATS_max > STATS_min ? STATS_max - STATS_min : 0.02 # with R 1 all are the same
set yrange [STATS_min - 0.12 * span:STATS_max + 0.25 * span]
set xlabel 'all-reduces per forward pass (the backward pass has as many)'
set ylabel 'validation loss after the last update (nats per token)'
set key outside right top reverse Left samplen 1 title 'pattern' left
set bars 1.5
at = 1
do for [i=1:n] { if (word(patterns, i) eq 't') { at = i } }
stats data index at-1 using 2 nooutput
t = STATS_mean
set arrow from graph 0, first t to graph 1, first t nohead lc rgb '#000000' dt 3
set label sprintf('mean of %s', word(patterns, at)) at graph 0.005, first t offset 0, 0.5 \
    tc rgb '#444444' font ',10'
set arrow from graph 0, first t + 0.01 to graph 1, first t + 0.01 nohead lc rgb '#888888' dt 2
set label '+ 0.01' at graph 0.005, first t + 0.01 offset 0, 0.5 tc rgb '#666666' font ',10'
colour(i) = word(colours, i)
one(i) = int(word(points, i))
plot for [i=1:n] data index i-1 using (x($1, $5)):4 \
        with points pt 6 ps 0.8 lc rgb colour(i) notitle, \
    for [i=1:n] data index i-1 every ::0::0 using (x($1, $5)):($3 == $3 ? $2 : NaN):3 \
        with yerrorbars pt 0 lw 2 lc rgb colour(i) notitle, \
    for [i=1:n] data index i-1 every ::0::0 using (x($1, $5)):2 \
        with points pt one(i) ps 1.6 lw 2 lc rgb colour(i) title word(patterns, i), \
    for [i=1:n] data index i-1 every ::0::0 using (x($1, $5)):7: \
        (strlen(strcol(6)) == 1 ? strcol(6) : '') \
        with labels offset 0, 0.8 font ',11' notitle, \
    for [i=1:n] data index i-1 every ::0::0 using (x($1, $5)):7: \
        (strlen(strcol(6)) > 1 && strlen(strcol(6)) < 8 ? strcol(6) : '') \
        with labels rotate by 90 offset 0, 0.8 left font ',11' notitle, \
    NaN with lines lc rgb '#ffffff' title ' ', \
    NaN with points pt 6 ps 0.8 lc rgb '#666666' title 'one seed', \
    NaN with linespoints pt 7 ps 1.6 lw 2 lc rgb '#666666' title 'mean ± error to t'
