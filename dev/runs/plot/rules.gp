# Merge rules side by side. Called by dev/runs/plot.sh with data (a block per rule), title, and
# plain, the mean loss of t or nothing.
array names[3] = ['sum', 'mean', 'streams']
array colours[3] = ['#0072B2', '#D55E00', '#009E73']
array points[3] = [5, 7, 9]
set title title font ',16'
set grid y lc rgb '#cccccc' lw 0.7 dt 1
set border 3 lc rgb '#444444'
set tics nomirror
stats data using 1 nooutput # before a range is set: it would leave points out
most = floor(STATS_max + 0.5)
stats data using 4 nooutput
span = STATS_max - STATS_min
low = STATS_min
high = STATS_max
if (strlen(plain)) {
    low = plain + 0 < low ? plain + 0 : low
    high = plain + 0 > high ? plain + 0 : high
    set arrow from graph 0, first plain + 0 to graph 1, first plain + 0 nohead lc rgb '#000000' dt 3
    set label 'mean of t' at graph 0.01, first plain + 0 offset 0, 0.5 tc rgb '#444444' font ',10'
}
set yrange [low - 0.12 * span:high + 0.12 * span]
set xrange [0.4:most + 0.6]
set xlabel 'pattern (its all-reduces per forward pass)'
set ylabel 'validation loss after the last update (nats per token)'
set key outside right top reverse Left samplen 1
set bars 1.5
plot for [i=1:3] data index i-1 using 1:4 with points pt 6 ps 0.8 lc rgb colours[i] notitle, \
    for [i=1:3] data index i-1 using 1:($3 == $3 ? $2 : NaN):3 \
        with yerrorbars pt 0 lw 2 lc rgb colours[i] notitle, \
    for [i=1:3] data index i-1 using 1:2 \
        with points pt points[i] ps 1.6 lw 2 lc rgb colours[i] title 'rule '.names[i], \
    data using (floor($1 + 0.5)):(NaN):xticlabels(5) notitle, \
    NaN with points pt 6 ps 0.8 lc rgb '#666666' title 'one seed', \
    NaN with linespoints pt 7 ps 1.6 lw 2 lc rgb '#666666' title 'mean ± std. error'
