# Loss of a trained model against all-reduces per forward pass. Called by dev/runs/syncs_plot.sh
# with data and title.
set title title font ',16'
set grid lc rgb '#cccccc' lw 0.7 dt 1
set border 3 lc rgb '#444444'
set tics nomirror
stats data index 0 using 1 nooutput
most = STATS_max
set logscale x 2
set xrange [0.85:most * 1.2]
set xtics (1, 2, 3, 4, 6, 8, 12, 16, 24, 36, 48, 64, 96, 128)
set xlabel 'all-reduces per forward pass'
set ylabel 'loss (nats per token)'
set bmargin 6
set key below maxrows 2 reverse Left samplen 2
set bars 0.6
stats data index 0 using ($1 == most ? $2 : NaN) nooutput
base = STATS_min
set arrow from graph 0, first base to graph 1, first base nohead lc rgb '#000000' dt 3
plot data index 2 using 1:2 with points pt 6 ps 0.6 lc rgb '#999999' title 'random choice', \
    data index 3 using 1:2 with lines lw 1.5 dt 2 lc rgb '#999999' title 'their mean', \
    data index 0 using 1:2:3 with yerrorlines pt 7 ps 0.9 lw 2 lc rgb '#D55E00' \
        title 'greedy choice ± error', \
    data index 1 using 1:2 with points pt 9 ps 1.4 lc rgb '#0072B2' title 'regular patterns', \
    data index 1 using 1:2:4 with labels offset 0.8, 0.7 left font ',11' tc rgb '#0072B2' notitle
